"""Two processes train the same model as one."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from training.train_vae import train
from vae.weights import WEIGHTS

pytestmark = pytest.mark.slow


def train_in_two_processes(kind, flags):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "training.command", kind, "--preset", "tiny", *map(str, flags)],
        capture_output=True,
        text=True,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_two_processes_train_the_same_vae_as_one(vae_run, tmp_path):
    # Without images, since a batch of them is one draw for all; in fp32, since bf16 sums differ more by their order.
    one = replace(vae_run, out=tmp_path / "one", steps=2, adversarial_start=9, image_ratio=0.0, precision="no")
    train(one)
    fields = ("data", "held_out", "steps", "batch_size", "frames", "channels", "widths", "encoder_blocks")
    fields += ("decoder_blocks", "adversarial_start", "image_ratio", "warmup_steps", "decay_steps", "ema_decay", "lr")
    flags = []
    for name in (*fields, "discriminator_width", "precision"):
        value = getattr(one, name)
        flags += [f"--{name.replace('_', '-')}", *(value if isinstance(value, tuple) else (value,))]
    train_in_two_processes("vae", [*flags, "--out", tmp_path / "two"])
    found = load_file(tmp_path / "two" / "vae" / WEIGHTS)
    for name, value in load_file(one.out / "vae" / WEIGHTS).items():
        assert (found[name] - value).abs().max() <= 2e-3 * max(1.0, float(value.abs().max())), name


def test_processes_with_different_numbers_of_caption_choices_train_together(world, tmp_path):
    flags = (
        f"--data {world}/train --held-out {world}/test --out {tmp_path} --steps 6 --batch-size 4 --width 32 --heads 2"
    )
    flags += " --layers 1 --tokenizer-pairs 20 --vocab-size 512 --warmup-steps 1 --decay-steps 1 --validation-pairs 4"
    train_in_two_processes("upsampler", [*flags.split(), "--evaluation-prompts", 1])
    assert (tmp_path / "upsampler").is_dir()
