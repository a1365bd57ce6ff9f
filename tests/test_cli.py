"""The command line: what a user types, what comes out, what is said when it cannot be done."""

import importlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from app.cli import TRAINING, main
from app.render import request_in
from dit.modes import MODES
from vae.video.read import read_image, read_metadata, read_video
from vae.video.write import write_video


@pytest.fixture
def longtake(tiny_model, capsys):
    """Run a command with the tiny model; return its exit code, what it printed and what it said."""

    def run(*words):
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:  # argparse's own
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def generate(longtake, tiny_model):
    return lambda *words: longtake("generate", *words, "--model", tiny_model)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_help_is_there_in_half_a_second():
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "app.cli", "--help"], capture_output=True, text=True)
        seconds.append(time.monotonic() - start)
        assert done.returncode == 0 and "generate" in done.stdout and "evaluate" in done.stdout
    assert min(seconds) < 0.5


def test_help_imports_nothing_heavy():
    heavy = {"torch", "diffusers", "av", "numpy", "tyro"}
    code = f"import sys, app.cli; app.cli.parser(); print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    "words",
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
def test_every_command_explains_itself(longtake, words):
    code, out, _ = longtake(*words, "--help")
    assert code == 0 and "usage: longtake" in out and all(len(line) <= 140 for line in out.splitlines())


def test_modes_lists_every_row_with_a_line_and_an_example(longtake):
    code, out, _ = longtake("modes")
    assert code == 0
    for name, mode in MODES.items():
        assert name in out and mode.line in out and mode.example in out


@pytest.mark.parametrize("name", MODES)
def test_the_examples_of_the_modes_are_understood(name):
    import shlex

    from app.cli import parser

    chosen = parser().parse_args(shlex.split(MODES[name].example)[1:])
    assert (chosen.mode or "text-to-video") == name
    assert all(getattr(chosen, field) for field in MODES[name].needs)


@pytest.mark.parametrize("name", MODES)
def test_a_mode_offers_the_flags_that_it_reads_and_no_others(longtake, name):
    from app.cli import FIELDS

    code, out, _ = longtake(name, "--help")
    assert code == 0 and MODES[name].line.split(":")[0] in " ".join(out.split())
    offered = {how.get("dest", flag) for flag, how in FIELDS.items() if f"--{flag} " in out}
    mode = MODES[name]
    assert offered == set(mode.reads) and ("--seconds" in out) == (mode.timed and not mode.still)


def test_the_table_of_training_commands_names_what_exists():
    for module, function in TRAINING.values():
        assert callable(getattr(importlib.import_module(module), function))


def test_a_clip_is_written_and_named(generate, tmp_path):
    code, out, err = generate(
        "a red ball bounces", "--seconds", 2, "--size", "64x64", "--seed", 1, "-o", tmp_path / "clip.mp4"
    )
    assert code == 0 and out.strip() == str(tmp_path / "clip.mp4") and "dreaming" in err
    clip = read_video(tmp_path / "clip.mp4")
    assert clip.video.shape == (3, 17, 64, 64) and clip.fps == 8


def test_a_clip_is_extended_edited_and_made_again_with_its_files(generate, longtake, tiny_model, tmp_path):
    generate("a red ball", "-o", tmp_path / "clip.mkv")
    for name, words in (
        ("extend", ["the ball goes on", "--seconds", 1]),
        ("edit", ["a blue cube", "--strength", 0.5]),
        ("loop", ["a cube spins"]),
    ):
        given = [] if name == "loop" else ["--clip", tmp_path / "clip.mkv"]
        output = tmp_path / f"{name}.mp4"
        code, out, err = longtake(name, *words, *given, "--model", tiny_model, "--steps", 2, "-o", output)
        assert code == 0 and out.strip() == str(output), err
        assert longtake("again", output, "-o", tmp_path / "again.mp4")[0] == 0
        assert (tmp_path / "again.mp4").read_bytes() == output.read_bytes()
    assert read_video(tmp_path / "extend.mp4").video.shape[1] == 25
    assert read_video(tmp_path / "loop.mp4").video.shape[1] == 20


def test_latents_that_were_kept_are_given_instead_of_the_file_coded_again(generate, longtake, tiny_model, tmp_path):
    from dit.inputs import keep_latents, kept_latents
    from dit.pipeline import Pipeline

    clip, made = tmp_path / "clip.mp4", tmp_path / "longer.mp4"
    generate("a red ball", "--keep-latents", "-o", clip)
    vae = Pipeline.from_pretrained(tiny_model).vae
    extend = (
        "extend",
        "it goes on",
        "--clip",
        clip,
        "--seconds",
        1,
        "--model",
        tiny_model,
        "--keep-latents",
        "-o",
        made,
    )
    assert longtake(*extend)[0] == 0
    before, after = kept_latents(clip, vae), kept_latents(made, vae)
    assert before is not None and after is not None and torch.equal(after[:, :5], before)
    assert {path for path, _ in request_in(made).hashes} == {str(clip), f"{clip}.latents"}
    Path(f"{clip}.latents").unlink()
    assert "clip.mp4.latents" in longtake("again", made)[2]
    assert longtake(*extend)[0] == 0  # of the file, then: not the same latents, which the codec has changed
    again = kept_latents(made, vae)
    assert again is not None and not torch.equal(again[:, :5], before)
    keep_latents(clip, before, vae)
    assert longtake("again", made, "--keep-latents")[0] == 0  # made without them, and so it is again
    anew = kept_latents(tmp_path / "longer-again.mp4", vae)
    assert anew is not None and torch.equal(anew, again)
    clip.write_bytes(made.read_bytes())
    assert kept_latents(clip, vae) is None  # another clip's
    assert "latents of a loop" in longtake("loop", "x", "--keep-latents", "--model", tiny_model, "-o", clip)[2]


def test_a_storyboard_needs_no_other_prompt(longtake, tiny_model, tmp_path):
    (tmp_path / "board.yaml").write_text("seconds: 2.125\nmoments: [{at: 0, prompt: a ball}, {at: 1, prompt: a cube}]")
    code, _, err = longtake(
        *("storyboard", "--moments", tmp_path / "board.yaml", "--model", tiny_model, "-o", tmp_path / "story.mp4")
    )
    assert code == 0, err
    assert [moment.prompt for moment in request_in(tmp_path / "story.mp4").moments] == ["a ball", "a cube"]


def test_a_badge_is_seen_in_its_corner_and_kept_by_again(generate, longtake, tmp_path):
    generate("a red ball", "-o", tmp_path / "plain.mkv")
    generate("a red ball", "--mark", "top-left", "-o", tmp_path / "marked.mkv")
    assert longtake("again", tmp_path / "marked.mkv", "-o", tmp_path / "again.mkv")[0] == 0
    plain, marked, again = (read_video(tmp_path / f"{name}.mkv").video for name in ("plain", "marked", "again"))
    changed = (plain != marked).any(0).any(0)
    assert changed[:20, :30].any() and not changed[20:].any() and not changed[:, 30:].any()
    assert torch.equal(marked, again)


def test_a_clip_can_be_made_again_from_its_own_file(generate, longtake, tmp_path):
    generate("a red ball", "--seed", 5, "-o", tmp_path / "clip.mp4")
    code, _, err = longtake("again", tmp_path / "clip.mp4", "-o", tmp_path / "again.mp4")
    assert code == 0 and "will differ" not in err
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "clip.mp4").read_bytes()
    code, out, _ = longtake("again", tmp_path / "clip.mp4", "--seed", 6)
    assert code == 0 and out.strip() == str(tmp_path / "clip-again.mp4")
    assert request_in(tmp_path / "clip-again.mp4").seed == 6
    assert request_in(tmp_path / "clip-again.mp4").prompt == "a red ball"
    assert (tmp_path / "clip-again.mp4").read_bytes() != (tmp_path / "clip.mp4").read_bytes()


def test_again_says_so_when_the_weights_are_others(generate, longtake, tiny_model, tmp_path):
    import json

    other = shutil.copytree(tiny_model, tmp_path / "other")
    settings = json.loads((other / "longtake.json").read_text())
    (other / "longtake.json").write_text(json.dumps(settings | {"guidance": 3.0}))
    generate("a red ball", "-o", tmp_path / "clip.mp4")
    code, _, err = longtake("again", tmp_path / "clip.mp4", "--model", other)
    assert code == 0 and "so it will differ" in err


def test_several_prompts_seeds_and_sizes_share_one_model(generate, tmp_path, monkeypatch):
    from dit.pipeline import Pipeline

    loads = []
    real = Pipeline.from_pretrained
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda folder: loads.append(folder) or real(folder))
    code, out, _ = generate(
        "a ball",
        "a cube",
        "--seed",
        1,
        2,
        "--size",
        "64x64",
        "48x64",
        "--seconds",
        1.1,
        "--steps",
        1,
        "-o",
        tmp_path / "c.mp4",
    )
    assert code == 0 and len(loads) == 1
    assert left_in(tmp_path) == [f"c-{n:02d}.mp4" for n in range(1, 9)]
    assert len(out.split()) == 8
    assert read_video(tmp_path / "c-08.mp4").video.shape == (3, 9, 64, 48)


def test_variations_of_a_request_have_the_seeds_after_it(generate, tmp_path):
    code, out, err = generate("a red ball", "--variations", 3, "--seed", 7, "--steps", 1, "-o", tmp_path / "c.mp4")
    assert code == 0, err
    assert [request_in(path).seed for path in out.split()] == [7, 8, 9]
    code, _, err = generate("a red ball", "--variations", 0, "-o", tmp_path / "c.mp4")
    assert code == 2 and "variations must be at least 1; got 0" in err


def test_a_picture_is_a_png_that_carries_its_request(generate, tmp_path):
    code, _, _ = generate("a blue cube", "--mode", "text-to-image", "-o", tmp_path / "cube.png")
    assert code == 0 and read_image(tmp_path / "cube.png").shape == (3, 1, 64, 64)
    assert request_in(tmp_path / "cube.png").mode == "text-to-image"


def test_a_still_comes_alive(generate, tmp_path):
    Image.new("RGB", (100, 80), "teal").save(tmp_path / "still.png")
    code, _, err = generate(
        "it moves", "--mode", "image-to-video", "--image", tmp_path / "still.png", "-o", tmp_path / "c.webm"
    )
    assert code == 0, err
    assert request_in(tmp_path / "c.webm").image == str(tmp_path / "still.png")


def test_a_contact_sheet_is_made_on_request(generate, tmp_path):
    code, out, _ = generate("a red ball", "-o", tmp_path / "c.mp4", "--sheet", tmp_path / "c.png")
    assert code == 0 and out.split() == [str(tmp_path / "c.mp4"), str(tmp_path / "c.png")]
    assert min(read_image(tmp_path / "c.png").shape[2:]) > 100


def test_a_preview_shows_what_is_being_dreamed(generate, tmp_path):
    code, out, _ = generate("a red ball", "-o", tmp_path / "c.mp4", "--preview", tmp_path / "p.png")
    assert code == 0 and out.split() == [str(tmp_path / "c.mp4")]
    assert min(read_image(tmp_path / "p.png").shape[2:]) > 100
    code, _, err = generate("a red ball", "-o", tmp_path / "c.mp4", "--preview", p := tmp_path / "s.png", "--sheet", p)
    assert code == 2 and "must be a .png of its own" in err


def test_the_request_inside_is_whole(generate, tmp_path):
    prompt = '一个红色的球 "bounces"'
    generate(prompt, "-o", tmp_path / "c.mp4")
    request = request_in(tmp_path / "c.mp4")
    assert request.prompt == prompt and request.steps == 3 and request.guidance == 2.0 and request.model_hash
    assert set(read_metadata(tmp_path / "c.mp4")) == {"longtake"}


BAD = {
    "an unknown mode": (["x", "--mode", "dream"], "invalid choice: 'dream'"),
    "an empty prompt": ([""], "a prompt must say something; got none"),
    "a prompt beyond the limit": (["red " * 120], "a prompt must be at most 96 tokens"),
    "an untrained size": (["x", "--size", "100x100"], "size must be one this model was trained for"),
    "a size that is none": (["x", "--size", "big"], "size must be COLUMNSxROWS"),
    "an untrained duration": (["x", "--seconds", "60"], "seconds must be one this model was trained for"),
    "an untrained frame rate": (["x", "--fps", "24"], "fps must be what this model was trained for"),
    "a missing image": (["x", "--mode", "image-to-video", "--image", "gone.png"], "gone.png"),
    "no image": (["x", "--mode", "image-to-video"], "needs image; got none, so give --image"),
    "a broken image": (["x", "--mode", "image-to-video", "--image", "broken.png"], "broken.png"),
    "an address for an image": (["x", "--mode", "image-to-video", "--image", "http://x/y.png"], "http://x/y.png"),
    "a flag it does not know": (["x", "--colour", "red"], "--colour"),
    "a seed that is none": (["x", "--seed", "one"], "invalid int value: 'one'"),
}


@pytest.mark.parametrize("words, sentence", BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_in_one_sentence_with_exit_code_2(generate, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    code, out, err = generate(*words, "-o", tmp_path / "clip.mp4")
    assert code == 2 and not out and sentence in err and "Traceback" not in err
    assert left_in(tmp_path) == ["broken.png"]


@pytest.mark.parametrize(
    "output, sentence",
    [
        ("clip.avi", "a text-to-video file must end in .mp4 or .webm or .gif or .mkv"),
        ("clip.png", "a text-to-video file must end in .mp4"),
        ("missing/clip.mp4", "missing"),
        ("folder.mp4", "folder.mp4"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(generate, tmp_path, output, sentence, monkeypatch):
    from dit.pipeline import Pipeline

    monkeypatch.setattr(Pipeline, "from_pretrained", lambda folder: pytest.fail("the model was loaded"))
    (tmp_path / "folder.mp4").mkdir()
    code, _, err = generate("x", "-o", tmp_path / output)
    assert code == 2 and sentence in err and "Traceback" not in err


def test_a_damaged_model_is_refused(longtake, tiny_model, tmp_path):
    damaged = shutil.copytree(tiny_model, tmp_path / "model")
    path = damaged / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    code, _, err = longtake("generate", "x", "-o", tmp_path / "c.mp4", "--model", damaged)
    assert code == 2 and "is damaged" in err and not (tmp_path / "c.mp4").exists()


def test_an_unknown_model_is_refused(longtake, tmp_path):
    code, _, err = longtake("generate", "x", "-o", tmp_path / "c.mp4", "--model", "sora")
    assert (
        code == 2 and "model must be a folder with a model_index.json or a shipped model" in err and "got 'sora'" in err
    )


def test_a_file_without_a_request_cannot_be_made_again(longtake, tmp_path):
    write_video(tmp_path / "c.mp4", torch.zeros(3, 5, 64, 64), 8)
    code, _, err = longtake("again", tmp_path / "c.mp4")
    assert code == 2 and "must carry its request" in err
    assert longtake("again", tmp_path / "gone.mp4")[0] == 2


def test_a_full_disk_is_a_failure_that_leaves_nothing(tiny_model, tmp_path):
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "from app.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["generate", "x", "-o", str(tmp_path / "c.mp4"), "--model", str(tiny_model)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "c.mp4" in done.stderr
    assert left_in(tmp_path) == []


def test_ctrl_c_leaves_nothing_and_exits_130(generate, tmp_path, monkeypatch):
    from dit.pipeline import Pipeline

    def interrupt(self, latents, steps=4):
        yield torch.zeros(3, 1, 64, 64)
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "frames", interrupt)
    code, _, err = generate("x", "-o", tmp_path / "c.mp4")
    assert code == 130 and "interrupted" in err and left_in(tmp_path) == []


def test_a_failure_nobody_foresaw_is_one_line_and_shown_whole_on_request(generate, tmp_path, monkeypatch):
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
