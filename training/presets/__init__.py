"""Presets: named functions that return runs, a file per model."""

from training.config import Recipe
from training.presets.first import (
    captioner_first,
    dit_first,
    dit_first_deep,
    dit_first_long,
    dit_first_longer,
    judge_first,
    text_first,
    upsampler_first,
    vae_first,
    vae_first_continued,
    vae_first_decoder,
    world_first,
    world_first_combinations,
    world_first_test,
)
from training.presets.second import (
    captioner_second,
    dit_second,
    dit_second_square,
    dit_second_words,
    judge_second,
    text_second,
    upsampler_second,
    vae_second,
    world_second,
    world_second_combinations,
    world_second_test,
    world_second_vae,
    world_second_vae_test,
)
from training.presets.tiny import (
    captioner_tiny,
    dit_tiny,
    text_tiny,
    upsampler_tiny,
    vae_tiny,
    world_tiny,
    world_tiny_test,
)

PRESETS = {
    "world": {
        "tiny": world_tiny,
        "tiny-test": world_tiny_test,
        "first": world_first,
        "first-test": world_first_test,
        "first-combinations": world_first_combinations,
        "second": world_second,
        "second-test": world_second_test,
        "second-combinations": world_second_combinations,
        "second-vae": world_second_vae,
        "second-vae-test": world_second_vae_test,
    },
    "vae": {
        "tiny": vae_tiny,
        "first": vae_first,
        "first-continued": vae_first_continued,
        "first-decoder": vae_first_decoder,
        "second": vae_second,
    },
    "text": {"tiny": text_tiny, "first": text_first, "second": text_second},
    "captioner": {"tiny": captioner_tiny, "first": captioner_first, "second": captioner_second},
    "upsampler": {"tiny": upsampler_tiny, "first": upsampler_first, "second": upsampler_second},
    "dit": {
        "tiny": dit_tiny,
        "first": dit_first,
        "first-deep": dit_first_deep,
        "first-long": dit_first_long,
        "first-longer": dit_first_longer,
        "second-words": dit_second_words,
        "second-square": dit_second_square,
        "second": dit_second,
    },
    "judge": {"first": judge_first, "second": judge_second},
    "recipe": {
        "tiny": Recipe,
        "first": lambda: Recipe("first"),
        "second": lambda: Recipe("second", ("world", "vae", "text", "dit", "captioner", "upsampler", "judge")),
    },
}
