"""A toy world of eighteen clips, and an upsampler that learns it in seconds."""

import numpy as np
import torch

from captioning.upsampler import TrainedUpsampler, UpsamplerModel, train_upsampler_tokenizer
from training.config import UpsamplerRun
from training.loop import build_adamw
from training.prompt_pairs import PromptPair
from training.train_upsampler import confidence_thresholds, pair_losses

COLOURS, SHAPES, EVENTS = ("red", "blue", "green"), ("ball", "cube"), ("spins", "falls", "rests")


def draw_toy_pairs(rng, count: int) -> list[PromptPair]:
    """Draw pairs such as "red ball falls" and "a red ball falls at noon. the camera rests."."""
    pairs = []
    for _ in range(count):
        colour, shape, event = (str(rng.choice(words)) for words in (COLOURS, SHAPES, EVENTS))
        prompt = f"{colour} {shape}" + (f" {event}" if rng.random() < 0.6 else "")
        time, camera = rng.choice(("noon", "night")), rng.choice(("rests", "pans"))
        pairs.append(PromptPair("<clip>", prompt, f"a {colour} {shape} {event} at {time}. the camera {camera}."))
    return pairs


def draw_true_and_false_pairs(rng) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Draw prompts with true captions, and the same prompts with captions of another colour."""
    true = [(pair.prompt, pair.caption) for pair in draw_toy_pairs(rng, 400)]
    other = dict(zip(COLOURS, COLOURS[1:] + COLOURS[:1], strict=True))
    return true, [(prompt, caption.replace(word := prompt.split()[0], other[word])) for prompt, caption in true]


def train_toy_upsampler() -> TrainedUpsampler:
    """Return an upsampler trained on the toy world, with its confidence thresholds."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    texts = (text for pair in draw_toy_pairs(rng, 200) for text in (pair.prompt, pair.caption))
    tokenizer = train_upsampler_tokenizer(texts, 340, 128)
    model = UpsamplerModel(
        len(tokenizer), 128, 48, 2, 2, tokenizer.eos_token_id, tokenizer.pad_token_id, max_prompt_bytes=40
    )
    optimizer = build_adamw(model, UpsamplerRun(lr=6e-3))
    for _ in range(200):
        sum(pair_losses(model, tokenizer, draw_toy_pairs(rng, 16), model.device)).backward()
        optimizer.step()
        optimizer.zero_grad()
    upsampler = TrainedUpsampler(tokenizer, model.eval())
    model.register_to_config(**confidence_thresholds(upsampler, *draw_true_and_false_pairs(rng)))
    return upsampler
