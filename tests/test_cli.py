"""The command line: help, exit codes, and error messages."""

import os
import resource
import shlex
import shutil
import subprocess
import sys

import pytest
import torch

from app.cli import make_parser
from app.commands.request_flags import MODE_FLAGS
from app.commands.training import FUNCTIONS, PARTS, load
from dit.modes import MODES
from tests.test_generate import left_in
from training.command import TRAINERS


def test_help_takes_less_than_half_a_second():
    def cpu_seconds():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    seconds = []
    for _ in range(3):  # CPU time, so that a busy machine does not count
        start = cpu_seconds()
        done = subprocess.run([sys.executable, "-m", "app.cli", "--help"], capture_output=True, text=True)
        seconds.append(cpu_seconds() - start)
        assert done.returncode == 0 and "generate" in done.stdout and "evaluate" in done.stdout
    assert min(seconds) < 0.5


def test_help_imports_nothing_heavy():
    heavy = {"torch", "diffusers", "av", "numpy"}
    code = f"import sys, app.cli; app.cli.make_parser(); print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [
        ["generate"],
        ["again"],
        ["modes"],
        ["caption"],
        ["render"],
        ["jobs"],
        ["work"],
        ["sign"],
        ["verify"],
        ["evaluate"],
        ["bench"],
        ["world"],
        ["train"],
        ["train", "vae"],
        ["train", "dit"],
    ],
)
def test_every_command_has_help(longtake, command):
    code, out, _ = longtake(*command, "--help")
    assert code == 0 and "usage: longtake" in out and all(len(line) <= 140 for line in out.splitlines())


def test_modes_lists_every_row_with_a_line_and_an_example(longtake):
    code, out, _ = longtake("modes")
    assert code == 0
    for name, mode in MODES.items():
        assert name in out and mode.summary in out and mode.example in out


@pytest.mark.parametrize("name", MODES)
def test_the_examples_of_the_modes_can_be_parsed(name):
    args = make_parser().parse_args(shlex.split(MODES[name].example)[1:])
    assert (args.mode or "text-to-video") == name
    assert all(getattr(args, field) for field in MODES[name].needs)


@pytest.mark.parametrize("name", MODES)
def test_a_mode_has_the_flags_of_the_fields_that_it_reads_and_no_others(longtake, name):
    code, out, _ = longtake(name, "--help")
    assert code == 0 and MODES[name].summary.split(":")[0] in " ".join(out.split())
    offered = {settings.get("dest", flag) for flag, settings in MODE_FLAGS.items() if f"--{flag} " in out}
    mode = MODES[name]
    assert offered == set(mode.reads) and ("--seconds" in out) == (mode.timed and not mode.still)


FORMER_FLAGS = {
    "pack_size": ("render jobs.txt -o clips --together 3", 3),
    "max_clips": ("render jobs.txt -o clips --most 9", 9),
    "limit": ("jobs folder --most 9", 9),
    "max_jobs": ("serve --most-jobs 9", 9),
    "max_seconds": ("studio --most-seconds 9", 9.0),
    "phrasing": ("evaluate --words label", "label"),
}


@pytest.mark.parametrize("name", FORMER_FLAGS)
def test_flags_of_version_0_1_are_read_and_not_shown(name, capsys):
    command, value = FORMER_FLAGS[name]
    words = command.split()
    assert getattr(make_parser().parse_args(words), name) == value
    flag, _ = words[-2:]
    now = [f"--{name.replace('_', '-')}" if word == flag else word for word in words]
    assert getattr(make_parser().parse_args(now), name) == value
    assert getattr(make_parser().parse_args(words[:-2]), name) != value
    with pytest.raises(SystemExit):
        make_parser().parse_args([words[0], "--help"])
    assert flag not in capsys.readouterr().out.split()


def test_every_function_behind_the_door_to_training_exists():
    assert all(callable(load(name)) for name in FUNCTIONS)
    assert {"world", *PARTS} == TRAINERS.keys()


BAD_INPUT = {
    "an unknown mode": (["x", "--mode", "opera"], "invalid choice: 'opera'"),
    "an empty prompt": ([""], "a prompt must say something; got none"),
    "a prompt beyond the limit": (["red " * 120], "a prompt must be at most about 94 words for this model; got 120"),
    "an untrained size": (["x", "--size", "100x100"], "size must be one this model was trained for"),
    "a size that is no size": (["x", "--size", "big"], "size must be COLUMNSxROWS"),
    "an untrained duration": (["x", "--seconds", "60"], "seconds must be one this model was trained for"),
    "an untrained frame rate": (["x", "--fps", "24"], "fps must be what this model was trained for"),
    "a missing image": (["x", "--mode", "image-to-video", "--image", "gone.png"], "gone.png"),
    "no image": (["x", "--mode", "image-to-video"], "needs image; got none, so give --image"),
    "a broken image": (["x", "--mode", "image-to-video", "--image", "broken.png"], "broken.png"),
    "an address for an image": (["x", "--mode", "image-to-video", "--image", "http://x/y.png"], "http://x/y.png"),
    "an unknown flag": (["x", "--colour", "red"], "--colour"),
    "a seed that is no number": (["x", "--seed", "one"], "invalid int value: 'one'"),
}


@pytest.mark.slow
@pytest.mark.parametrize("flags, message", BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_refused_in_one_sentence_with_exit_code_2(generate, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    code, out, err = generate(*flags, "-o", tmp_path / "clip.mp4")
    assert code == 2 and not out and message in err and "Traceback" not in err
    assert left_in(tmp_path) == ["broken.png"]


@pytest.mark.parametrize(
    "output, message",
    [
        ("clip.avi", "a text-to-video file must end in .mp4 or .webm or .gif or .mkv"),
        ("clip.png", "a text-to-video file must end in .mp4"),
        ("missing/clip.mp4", "missing"),
        ("folder.mp4", "folder.mp4"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(generate, tmp_path, output, message, monkeypatch):
    from dit.pipeline import Pipeline

    monkeypatch.setattr(Pipeline, "from_pretrained", lambda folder: pytest.fail("the model was loaded"))
    (tmp_path / "folder.mp4").mkdir()
    code, _, err = generate("x", "-o", tmp_path / output)
    assert code == 2 and message in err and "Traceback" not in err


def test_a_damaged_model_is_refused(longtake, tiny_model, tmp_path):
    damaged = shutil.copytree(tiny_model, tmp_path / "model")
    path = damaged / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    code, _, err = longtake("generate", "x", "-o", tmp_path / "c.mp4", "--model", damaged)
    assert code == 2 and "is damaged" in err and not (tmp_path / "c.mp4").exists()


def test_an_unknown_model_is_refused(longtake, tmp_path):
    code, _, err = longtake("generate", "x", "-o", tmp_path / "c.mp4", "--model", "sora")
    assert (
        code == 2
        and "model must be a folder with a model_index.json, or one that longtake models lists" in err
        and "got 'sora'" in err
    )


@pytest.mark.slow
def test_a_full_disk_is_a_failure_that_leaves_no_file(tiny_model, tmp_path):
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "from app.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    argv = ["generate", "x", "-o", str(tmp_path / "c.mp4"), "--model", str(tiny_model)]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "c.mp4" in done.stderr
    assert left_in(tmp_path) == []


def test_ctrl_c_leaves_no_file_and_exits_130(generate, tmp_path, monkeypatch):
    from dit.pipeline import Pipeline

    def interrupt(self, latents, steps=4):
        yield torch.zeros(3, 1, 64, 64)
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "frames", interrupt)
    code, _, err = generate("x", "-o", tmp_path / "c.mp4")
    assert code == 130 and "interrupted" in err and left_in(tmp_path) == []


def test_an_unexpected_failure_is_one_line_and_a_traceback_on_request(generate, tmp_path, monkeypatch):
    from dit.pipeline import Pipeline

    monkeypatch.setattr(Pipeline, "frames", lambda self, latents: 1 / 0)
    code, _, err = generate("x", "-o", tmp_path / "c.mp4")
    assert code == 1 and "ZeroDivisionError" in err and "LONGTAKE_TRACEBACK=1" in err
    monkeypatch.setenv("LONGTAKE_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        generate("x", "-o", tmp_path / "c.mp4")


def test_training_commands_take_presets_and_fields(longtake, capsys):
    code, out, _ = longtake("train", "vae", "--preset", "tiny", "--steps", "7", "--dry-run")
    assert code == 0 and '"steps": 7' in out and "parameters" in out and "FLOPs a step" in out
    code, out, _ = longtake("world", "--preset", "tiny", "--dry-run")
    assert code == 0 and "clips" in out
    assert longtake("train", "vae", "--preset", "huge")[0] == 2
    assert longtake("train", "vae", "--speed", "7")[0] == 2


def test_two_openmp_threads_sleep_rather_than_spin():
    code = "import os, app.cli; app.cli.main(['modes']); print(os.environ['OMP_WAIT_POLICY'])"
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip().endswith("PASSIVE")
