"""`longtake generate`, the commands of the modes, and `longtake again`: files, their contents, their requests."""

import json
import shutil
from pathlib import Path

import torch
from PIL import Image

from app.render import read_request
from vae.video.read import read_image, read_metadata, read_video
from vae.video.write import write_video


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_clip_is_written_and_named(generate, tmp_path):
    code, out, err = generate(
        "a red ball bounces", "--seconds", 2, "--size", "64x64", "--seed", 1, "-o", tmp_path / "clip.mp4"
    )
    assert code == 0 and out.strip() == str(tmp_path / "clip.mp4") and "sampling" in err
    clip = read_video(tmp_path / "clip.mp4")
    assert clip.video.shape == (3, 17, 64, 64) and clip.fps == 8


def test_a_clip_is_extended_edited_and_made_again_with_its_files(generate, longtake, tiny_model, tmp_path):
    generate("a red ball", "-o", tmp_path / "clip.mkv")
    for name, flags in (
        ("extend", ["the ball goes on", "--seconds", 1]),
        ("edit", ["a blue cube", "--strength", 0.5]),
        ("loop", ["a cube spins"]),
    ):
        source = [] if name == "loop" else ["--clip", tmp_path / "clip.mkv"]
        output = tmp_path / f"{name}.mp4"
        code, out, err = longtake(name, *flags, *source, "--model", tiny_model, "--steps", 2, "-o", output)
        assert code == 0 and out.strip() == str(output), err
        assert longtake("again", output, "-o", tmp_path / "again.mp4")[0] == 0
        assert (tmp_path / "again.mp4").read_bytes() == output.read_bytes()
    assert read_video(tmp_path / "extend.mp4").video.shape[1] == 25
    assert read_video(tmp_path / "loop.mp4").video.shape[1] == 20


def test_kept_latents_are_used_in_place_of_the_file_encoded_again(generate, longtake, tiny_model, tmp_path):
    from dit.inputs import load_latents, save_latents
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
    before, after = load_latents(clip, vae), load_latents(made, vae)
    assert before is not None and after is not None and torch.equal(after[:, :5], before)
    assert {path for path, _ in read_request(made).hashes} == {str(clip), f"{clip}.latents"}
    Path(f"{clip}.latents").unlink()
    assert "clip.mp4.latents" in longtake("again", made)[2]
    assert longtake(*extend)[0] == 0  # now of the file, whose frames the codec has changed
    again = load_latents(made, vae)
    assert again is not None and not torch.equal(again[:, :5], before)
    save_latents(clip, before, vae)
    assert longtake("again", made, "--keep-latents")[0] == 0  # made without them, so made again without them
    anew = load_latents(tmp_path / "longer-again.mp4", vae)
    assert anew is not None and torch.equal(anew, again)
    clip.write_bytes(made.read_bytes())
    assert load_latents(clip, vae) is None  # another clip's
    assert "latents of a loop" in longtake("loop", "x", "--keep-latents", "--model", tiny_model, "-o", clip)[2]


def test_a_storyboard_needs_no_other_prompt(longtake, tiny_model, tmp_path):
    (tmp_path / "board.yaml").write_text("seconds: 2.125\nmoments: [{at: 0, prompt: a ball}, {at: 1, prompt: a cube}]")
    code, _, err = longtake(
        *("storyboard", "--moments", tmp_path / "board.yaml", "--model", tiny_model, "-o", tmp_path / "story.mp4")
    )
    assert code == 0, err
    assert [moment.prompt for moment in read_request(tmp_path / "story.mp4").moments] == ["a ball", "a cube"]


def test_a_watermark_is_drawn_in_its_corner_and_kept_by_again(generate, longtake, tmp_path):
    generate("a red ball", "-o", tmp_path / "plain.mkv")
    generate("a red ball", "--watermark", "top-left", "-o", tmp_path / "marked.mkv")
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
    assert read_request(tmp_path / "clip-again.mp4").seed == 6
    assert read_request(tmp_path / "clip-again.mp4").prompt == "a red ball"
    assert (tmp_path / "clip-again.mp4").read_bytes() != (tmp_path / "clip.mp4").read_bytes()


def test_again_warns_where_the_weights_differ(generate, longtake, tiny_model, tmp_path):
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


def test_variations_have_consecutive_seeds(generate, tmp_path):
    code, out, err = generate("a red ball", "--variations", 3, "--seed", 7, "--steps", 1, "-o", tmp_path / "c.mp4")
    assert code == 0, err
    assert [read_request(path).seed for path in out.split()] == [7, 8, 9]
    code, _, err = generate("a red ball", "--variations", 0, "-o", tmp_path / "c.mp4")
    assert code == 2 and "variations must be at least 1; got 0" in err


def test_an_image_is_a_png_that_carries_its_request(generate, tmp_path):
    code, _, _ = generate("a blue cube", "--mode", "text-to-image", "-o", tmp_path / "cube.png")
    assert code == 0 and read_image(tmp_path / "cube.png").shape == (3, 1, 64, 64)
    assert read_request(tmp_path / "cube.png").mode == "text-to-image"


def test_a_clip_is_made_from_an_image(generate, tmp_path):
    Image.new("RGB", (100, 80), "teal").save(tmp_path / "still.png")
    code, _, err = generate(
        "it moves", "--mode", "image-to-video", "--image", tmp_path / "still.png", "-o", tmp_path / "c.webm"
    )
    assert code == 0, err
    assert read_request(tmp_path / "c.webm").image == str(tmp_path / "still.png")


def test_a_contact_sheet_is_written_with_sheet(generate, tmp_path):
    code, out, _ = generate("a red ball", "-o", tmp_path / "c.mp4", "--sheet", tmp_path / "c.png")
    assert code == 0 and out.split() == [str(tmp_path / "c.mp4"), str(tmp_path / "c.png")]
    assert min(read_image(tmp_path / "c.png").shape[2:]) > 100


def test_a_preview_is_written_while_a_clip_is_sampled(generate, tmp_path):
    code, out, _ = generate("a red ball", "-o", tmp_path / "c.mp4", "--preview", tmp_path / "p.png")
    assert code == 0 and out.split() == [str(tmp_path / "c.mp4")]
    assert min(read_image(tmp_path / "p.png").shape[2:]) > 100
    code, _, err = generate("a red ball", "-o", tmp_path / "c.mp4", "--preview", p := tmp_path / "s.png", "--sheet", p)
    assert code == 2 and "must be a .png of its own" in err


def test_a_file_carries_its_whole_request(generate, tmp_path):
    prompt = '一个红色的球 "bounces"'
    generate(prompt, "-o", tmp_path / "c.mp4")
    request = read_request(tmp_path / "c.mp4")
    assert request.prompt == prompt and request.steps == 3 and request.guidance == 2.0 and request.model_hash
    assert set(read_metadata(tmp_path / "c.mp4")) == {"longtake"}


def test_a_file_without_a_request_cannot_be_made_again(longtake, tmp_path):
    write_video(tmp_path / "c.mp4", torch.zeros(3, 5, 64, 64), 8)
    code, _, err = longtake("again", tmp_path / "c.mp4")
    assert code == 2 and "must carry its request" in err
    assert longtake("again", tmp_path / "gone.mp4")[0] == 2
