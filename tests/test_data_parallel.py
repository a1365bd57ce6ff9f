"""Several processes train the same model as one, and so do micro-batches."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from training.train_dit import train as train_dit
from training.train_vae import train
from vae.weights import WEIGHTS

pytestmark = pytest.mark.slow


def train_in_processes(kind, flags, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*command, "-m", "training.command", kind, "--preset", "tiny", *map(str, flags)],
        capture_output=True,
        text=True,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def flags_of(run, names):
    """Return the options that set these fields of a run."""
    flags = []
    for name in names:
        value = getattr(run, name)
        values = (
            [part for one in value for part in (one if isinstance(one, tuple) else (one,))]
            if isinstance(value, tuple)
            else [value]
        )
        flags += [f"--{name.replace('_', '-')}", *values]
    return flags


def transformer(run):
    return load_file(run.out / "model" / "transformer" / WEIGHTS)


def assert_same(found, wanted):
    for name, value in wanted.items():
        assert (found[name] - value).abs().max() <= 2e-3 * max(1.0, float(value.abs().max())), name


@pytest.fixture
def few_steps(dit_run):
    """A run of a DiT of few steps, in fp32 since bf16 sums differ more by their order."""
    return replace(dit_run, steps=3, lr=1e-2, precision="no", validate_every=9, sample_every=9, batch_sizes=(2, 3))


def difference(found, wanted, initial):
    """Return how far weights are from others, as a fraction of how far these have moved from the initial ones."""
    norm = lambda one, other: sum(float((one[name] - other[name]).float().square().sum()) for name in other) ** 0.5
    assert found.keys() == wanted.keys() == initial.keys()
    return norm(found, wanted) / norm(wanted, initial)


@pytest.fixture
def initial(few_steps, tmp_path):
    """The weights that a run begins with."""
    untrained = replace(few_steps, steps=1, lr=0.0, out=tmp_path / "initial")
    train_dit(untrained)
    return transformer(untrained)


FIELDS = ("data", "held_out", "vae", "text_encoder", "formats", "batch_sizes", "depth", "steps", "warmup_steps", "lr")
FIELDS += (
    "decay_steps",
    "validate_every",
    "sample_every",
    "sample_steps",
    "validation_clips",
    "ema_decay",
    "precision",
)


def test_one_two_and_three_processes_train_the_same_dit(few_steps, initial, tmp_path):
    # Of 2 clips and 3 images a step: with three processes, none has both formats.
    report = train_dit(few_steps)
    for processes, max_tokens in ((2, 80), (3, 0)):
        several = replace(few_steps, out=tmp_path / str(processes), max_tokens=max_tokens)
        train_in_processes("dit", [*flags_of(several, (*FIELDS, "max_tokens")), "--out", several.out], processes)
        assert difference(transformer(several), transformer(few_steps), initial) < 0.02
        found = json.loads((several.out / "report.json").read_text())
        assert found == pytest.approx(report, rel=1e-3)
        described = json.loads((several.out / "run.json").read_text())
        assert described["processes"] == processes
        assert described["buckets"][0] == "64x64x17: 6 clips of 80 tokens, 2 a step, 1.00 times each"


@pytest.mark.parametrize("precision", ["no", "bf16-weights"])
def test_micro_batches_train_the_same_dit_as_one_batch(few_steps, initial, tmp_path, precision):
    whole = replace(few_steps, precision=precision)
    train_dit(whole)
    pieces = replace(whole, max_tokens=80, out=tmp_path / "pieces")
    train_dit(pieces)
    assert difference(transformer(pieces), transformer(whole), initial) < (0.02 if precision == "no" else 0.1)
    other = replace(whole, batch_sizes=(2, 2), out=tmp_path / "other")
    train_dit(other)  # a sum of other clips is far away
    assert difference(transformer(other), transformer(whole), initial) > 0.2


def test_two_processes_train_the_same_vae_as_one(vae_run, tmp_path):
    # Without images, since a batch of them is one draw for all; in fp32, since bf16 sums differ more by their order.
    one = replace(vae_run, out=tmp_path / "one", steps=2, adversarial_start=9, image_ratio=0.0, precision="no")
    train(one)
    fields = ("data", "held_out", "steps", "batch_size", "frames", "channels", "widths", "encoder_blocks")
    fields += ("decoder_blocks", "adversarial_start", "image_ratio", "warmup_steps", "decay_steps", "ema_decay", "lr")
    flags = flags_of(one, (*fields, "discriminator_width", "precision"))
    train_in_processes("vae", [*flags, "--out", tmp_path / "two"])
    found = load_file(tmp_path / "two" / "vae" / WEIGHTS)
    assert_same(found, load_file(one.out / "vae" / WEIGHTS))


def test_processes_with_different_numbers_of_caption_choices_train_together(world, tmp_path):
    flags = (
        f"--data {world}/train --held-out {world}/test --out {tmp_path} --steps 6 --batch-size 4 --width 32 --heads 2"
    )
    flags += " --layers 1 --tokenizer-pairs 20 --vocab-size 512 --warmup-steps 1 --decay-steps 1 --validation-pairs 4"
    train_in_processes("upsampler", [*flags.split(), "--evaluation-prompts", 1])
    assert (tmp_path / "upsampler").is_dir()
