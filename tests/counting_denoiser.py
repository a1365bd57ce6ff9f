"""The specification of an estimate: sample the whole canvas, with a denoiser that counts instead of computing."""

from functools import partial

import torch

from dit.batching import SamplingJob
from dit.denoiser import Denoiser
from dit.flops import encode_flops, forward_flops, linear_preview_flops
from dit.modes import MODES
from dit.packing import patchify
from dit.sampling_cost import Counts


class CountingDenoiser(Denoiser):
    """A denoiser whose velocities are zero, and which counts what the real ones would cost."""

    def __init__(self, model, counts, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model, self.counts, self.encoded = model, counts, set()

    def forward(self, segments, passes):
        counts, config = self.counts, self.networks.transformer.dit_config
        for index, _ in passes:
            self.count_text(segments[index].prompts.distinct)
        text = [self.model.token_count(one.prompt) for _, one in passes]
        for (_, one), tokens in zip(passes, text, strict=True):
            noise = patchify(one.sigma[None], config.patch).amax(1)
            counts.denoise_flops += forward_flops(config, len(noise), tokens, len(noise.unique()), max(text))
        counts.evaluations += len(passes)
        counts.most_passes = max(counts.most_passes, len(passes))
        for _, one in passes:
            yield torch.zeros_like(one.latents)

    def count_text(self, prompts):
        if prompts not in self.encoded:
            self.encoded.add(prompts)
            self.counts.text_flops += self.model.encode([self.model.token_count(prompt) for prompt in prompts])

    def encode_anchor(self, frame):
        vae, (_, H, W) = self.networks.vae, self.segments[0].canvas.denoise_mask.shape
        self.counts.anchor_flops += linear_preview_flops(vae, 2, H, W) + encode_flops(vae, 1, H, W)
        return torch.zeros(self.segments[0].canvas.clean_latents.shape[0], 1, H, W)

    def cut_loop(self, latents):
        T, H, W = latents.shape[1:]
        self.counts.anchor_flops += T * linear_preview_flops(self.networks.vae, 3, H, W)
        return latents


def count_by_sampling(cost_model, request, counter):
    """Return the latent frames and the Counts of a resolved request's whole canvas; `counter` counts its text."""
    counts = Counts()
    pipeline, inputs = cost_model.pipeline, cost_model.empty_inputs(request, {})
    canvas = MODES[request.mode].paint(inputs)
    longest = max(pipeline.trained_lengths(request), default=1)
    job = SamplingJob(0, request, canvas, pipeline.window_length(request, canvas), longest)
    for _ in pipeline.sample_pack([job], make_denoiser=partial(CountingDenoiser, counter, counts)):
        pass
    return canvas.latent_frames, counts
