"""Our own model in bfloat16: moved there as any diffusers pipeline is, and close to the same clip in float32."""

import torch

from dit.pipeline import Pipeline
from dit.request import Request


def test_a_pipeline_in_bfloat16_makes_nearly_the_same_clip(tiny_model):
    request = Request(prompt="a red ball bounces", size=(64, 64), seconds=1.125, steps=3, guidance=2.0, seed=1)
    pipeline = Pipeline.from_pretrained(tiny_model)
    (exact,) = pipeline.generate([request])
    shown = pipeline.pixels(exact)
    pipeline.to(torch.bfloat16)
    assert pipeline.transformer.dtype == pipeline.vae.dtype == torch.bfloat16
    (half,) = pipeline.generate([request])
    assert half.latents.dtype == torch.float32 and "bfloat16" in str(half.request.made_with)
    error = (half.latents - exact.latents).square().mean().sqrt() / exact.latents.std()
    assert 0 < error < 0.05, "eight bits of mantissa over three steps"
    assert (pipeline.pixels(exact) - shown).abs().mean() < 0.02
