"""Two processes train the same model as one."""

import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from training.config import WorldRun
from training.dataset import make_world
from vae.weights import WEIGHTS


@pytest.mark.parametrize("part", ["vae"])
def test_two_processes_share_a_run(part, tmp_path):
    make_world(WorldRun(folder=tmp_path / "train", clips=(6,), workers=1))
    sizes = "--steps 2 --batch-size 2 --frames 5 --adversarial-start 9 --warmup-steps 1 --decay-steps 1 --image-ratio 0"
    sizes += " --precision no"  # sums in another order differ more in bf16
    words = f"--preset tiny --data {tmp_path}/train --held-out {tmp_path}/train {sizes}".split()
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    found = {}
    for processes in (1, 2):
        out = tmp_path / f"out{processes}"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        done = subprocess.run(
            [*command, "-m", "training.command", part, *words, "--out", str(out)],
            capture_output=True,
            text=True,
            env=env,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found[processes] = load_file(out / part / WEIGHTS)
    for name, value in found[1].items():
        assert (found[2][name] - value).abs().max() <= 2e-3 * max(1.0, float(value.abs().max())), name


def test_processes_that_have_unlike_many_things_to_tell_apart_train_together(tmp_path):
    make_world(WorldRun(folder=tmp_path / "train", clips=(6,), workers=1))
    words = f"--preset tiny --data {tmp_path}/train --held-out {tmp_path}/train --out {tmp_path}/out --steps 6"
    words += " --batch-size 4 --tokenizer-pairs 20 --vocab-size 512 --warmup-steps 1 --decay-steps 1 --validation-pairs 4 --evaluation-prompts 1"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "training.command", "upsampler", *words.split()],
        capture_output=True,
        text=True,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "upsampler").is_dir()
