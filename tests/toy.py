"""A toy world of eighteen clips, and a writer that learns it in seconds."""

import numpy as np
import torch

from captioning.upsampler import TrainedUpsampler, UpsamplerModel, train_upsampler_tokenizer
from training.config import UpsamplerRun
from training.loop import build_adamw
from training.train_upsampler import confidence_thresholds, pair_losses

COLOURS, SHAPES, DEEDS = ("red", "blue", "green"), ("ball", "cube"), ("spins", "falls", "rests")


def toy_pairs(rng, count: int) -> list[tuple[str, str, str]]:
    """Draw pairs of a world of eighteen clips: "red ball falls", "A red ball falls at noon. The camera rests."."""
    found = []
    for _ in range(count):
        colour, shape, deed = (str(rng.choice(words)) for words in (COLOURS, SHAPES, DEEDS))
        prompt = f"{colour} {shape}" + (f" {deed}" if rng.random() < 0.6 else "")
        time, move = rng.choice(("noon", "night")), rng.choice(("rests", "pans"))
        found.append(("<clip>", prompt, f"a {colour} {shape} {deed} at {time}. the camera {move}."))
    return found


def toy_doubts(rng) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Draw prompts with true captions, and with captions of another colour."""
    true = [pair[1:] for pair in toy_pairs(rng, 400)]
    other = dict(zip(COLOURS, COLOURS[1:] + COLOURS[:1], strict=True))
    return true, [(short, told.replace(word := short.split()[0], other[word])) for short, told in true]


def taught() -> TrainedUpsampler:
    """Return a writer that learned the toy world, and when to trust itself."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    tokenizer = train_upsampler_tokenizer((text for _, *texts in toy_pairs(rng, 200) for text in texts), 340, 128)
    writer = UpsamplerModel(
        len(tokenizer), 128, 48, 2, 2, tokenizer.eos_token_id, tokenizer.pad_token_id, max_prompt_bytes=40
    )
    optimizer = build_adamw(writer, UpsamplerRun(lr=6e-3))
    for _ in range(200):
        sum(pair_losses(writer, tokenizer, toy_pairs(rng, 16), writer.device)).backward()
        optimizer.step()
        optimizer.zero_grad()
    ours = TrainedUpsampler(tokenizer, writer.eval())
    writer.register_to_config(**confidence_thresholds(ours, *toy_doubts(rng)))
    return ours
