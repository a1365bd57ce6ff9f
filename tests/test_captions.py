"""Our own captioner, the scores of captions, and the recaption experiment."""

import json
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from captioning.coca import ENCODER_FRAMES, CoCaCaptioner, OpenClipTokenizer, PerFrameEncoder, VideoCoCa, load_coca
from captioning.text_encoder import load_text_encoder, tokenize, train_tokenizer
from training.config import CaptionerRun
from training.dataset import open_bucket
from training.evaluation.captions import SCORED_ATTRIBUTES, caption_bucket, cider, precision_recall
from training.evaluation.evaluate import JUDGED_ATTRIBUTES
from training.experiments.recaption import (
    CAPTION_SETS,
    PROMPT_STYLES,
    compare_sets,
    draw_report,
    summarize,
    write_variant,
)
from training.train_captioner import build_model, mark_salient_tokens, train
from training.world.scene import clip_rng, sample_scene
from training.world.words import mirror_caption, read_caption, write_caption
from vae.weights import WEIGHTS, WeightsError

COLOURS = {"Red.": (0.8, -0.8, -0.8), "Green.": (-0.8, 0.8, -0.8), "Blue.": (-0.8, -0.8, 0.8)}
# open_clip's CoCa in miniature
SMALL = {
    "embed_dim": 32,
    "vision_cfg": {
        **{"image_size": 16, "layers": 1, "width": 32, "head_width": 32, "patch_size": 8, "output_tokens": True},
        **{"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4},
    },
    "text_cfg": {
        **{"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        **{"embed_cls": True, "output_tokens": True},
    },
    "multimodal_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    "custom_text": True,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The name of a CoCa that open_clip knows, and a file of its weights."""
    folder = tmp_path_factory.mktemp("coca")
    (folder / "coca_small.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder / "coca_small.json")
    torch.manual_seed(0)
    model = open_clip.create_model("coca_small")
    torch.nn.init.normal_(model.text_decoder.text_projection, std=0.2)
    torch.save(model.state_dict(), folder / "weights.pt")
    return "coca_small", folder / "weights.pt"


@pytest.fixture(scope="module")
def painter():
    """A captioner trained to name the colour of an image."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(COLOURS, 300, 16)
    shape = {"vocabulary": len(tokenizer), "context": 16, "width": 32, "heads": 2, "layers": 1, "decoder_layers": 1}
    model = VideoCoCa(**shape, video_width=16, video_layers=1, queries=4).train()
    loss_of = open_clip.loss.CoCaLoss(2.0, 1.0, pad_id=0)
    clips = torch.tensor(list(COLOURS.values()))[:, :, None, None, None].expand(-1, -1, 9, 64, 64)
    ids, _ = tokenize(tokenizer, list(COLOURS))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(30):
        noisy = clips + 0.1 * torch.randn(clips.shape)
        loss = sum(loss_of(**model(noisy, ids)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return CoCaCaptioner(model, tokenizer)


def painted(name: str, frames: int = 5, rows: int = 40, columns: int = 72) -> torch.Tensor:
    return torch.tensor(COLOURS[name])[:, None, None, None].expand(-1, frames, rows, columns)


@pytest.mark.parametrize("name", COLOURS)
def test_a_captioner_captions_clips_of_any_size_and_length(painter, name):
    assert painter.describe(painted(name)).text == name
    assert painter.describe(painted(name, frames=1, rows=64, columns=64)).text == name


def test_the_best_matching_text_of_a_clip_is_its_own(painter):
    found = painter.match(torch.stack([painted(name) for name in COLOURS]), list(COLOURS))
    assert found.argmax(1).tolist() == [0, 1, 2] and found.abs().max() <= 1.0001


def test_a_captioner_captions_the_same_when_it_is_loaded_again(painter, tmp_path):
    painter.save(tmp_path)
    again = load_coca(tmp_path)
    clips = torch.randn(4, 3, 9, 64, 64)
    assert again.caption_batch(clips) == painter.caption_batch(clips) and again.version != painter.version
    with pytest.raises(WeightsError, match="must hold config"):
        load_coca(tmp_path / "nowhere")


def test_the_kv_cache_changes_no_caption(painter):
    clips, tokenizer = torch.randn(3, 3, 9, 64, 64), painter.tokenizer
    start_id, end_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    generated = painter.model.generate(clips, start_id, end_id, 12)
    for clip, found in zip(clips, generated, strict=True):
        ids = [start_id]
        with torch.no_grad():
            while len(ids) < 12 and ids[-1] != end_id:
                ids.append(int(painter.model(clip[None], torch.tensor([[*ids, 0]]))["logits"][0, -1].argmax()))
        assert found == [token for token in ids if token not in (start_id, end_id)]
    assert any(generated)


def test_training_a_captioner_resumes_exactly_and_leaves_the_text_tower_unchanged(world, parts, tmp_path):
    run = CaptionerRun(
        data=world / "train",
        held_out=world / "test",
        out=tmp_path / "whole",
        text_encoder=world / "text" / "text",
        steps=4,
        short_caption_steps=2,
        warmup_steps=1,
        decay_steps=2,
        batch_size=4,
        video_width=16,
        video_layers=1,
        decoder_layers=1,
        queries=4,
        validate_every=4,
        validation_clips=2,
    )
    report = train(run)
    assert report["all"]["clips"] == 6 and len(report["examples"]) == 6
    broken = replace(run, out=tmp_path / "broken")
    train(replace(broken, steps=2, decay_steps=0))
    train(broken)
    found = [load_file(r.out / "captioner" / "captioner" / WEIGHTS) for r in (run, broken)]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    _, tower = load_text_encoder(run.text_encoder)
    kept = load_coca(run.out / "captioner").model.coca.text.tower
    for name, value in tower.state_dict().items():
        assert torch.equal(kept.state_dict()[name], value.half().float()), name


def test_the_tokens_that_describe_a_scene_are_marked():
    tokenizer, _ = load_text_encoder("app/models/first")
    texts = ["The video shows a large red ball. It is noon, and the camera holds still.", "In this clip, a cube."]
    ids, _ = tokenize(tokenizer, texts, truncate=True)
    marked = mark_salient_tokens(tokenizer, texts, ids)
    found = ["".join(tokenizer.decode(row[1:][marks]).split()) for row, marks in zip(ids, marked, strict=True)]
    assert found == ["largeredballnoonholdsstill", "cube"] and marked.shape == ids[:, 1:].shape
    cut = mark_salient_tokens(tokenizer, texts[:1], ids[:1, :9])
    assert torch.equal(cut[0, :-1], marked[0, :7])
    assert not cut[0, -1]  # the end token of a truncated caption describes nothing


def test_an_open_clip_checkpoint_embeds_a_still_clip_as_its_image(small):
    model = VideoCoCa.from_open_clip(small[0], str(small[1])).eval()
    theirs = open_clip.create_model(small[0], pretrained=str(small[1])).eval()
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    mean, deviation = (torch.tensor(theirs.visual.preprocess_cfg[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        wanted = theirs._encode_image((image / 2 + 0.5 - mean) / deviation)
        found = model.coca._encode_image(image[:, :, None].expand(-1, -1, ENCODER_FRAMES, -1, -1))
    for ours, their in zip(found, wanted, strict=True):
        assert torch.allclose(ours, their, atol=1e-5)


def test_an_open_clip_checkpoint_trains_captions_and_is_loaded_again(small, tmp_path):
    run = CaptionerRun(init_from=":".join(map(str, small)))
    model, tokenizer = build_model(run)
    assert isinstance(model.coca.visual, PerFrameEncoder) and isinstance(tokenizer, OpenClipTokenizer)
    clips = torch.rand(2, 3, 5, 24, 32) * 2 - 1
    ids, _ = tokenize(tokenizer, ["a red ball", "a blue cube"])
    sum(open_clip.loss.CoCaLoss(2.0, 1.0)(**model(clips, ids))).backward()
    assert model.coca.visual.frame_embed.grad.abs().sum() > 0
    captioner = CoCaCaptioner(model, tokenizer)
    captioner.save(tmp_path)
    assert load_coca(tmp_path).caption_batch(clips) == captioner.caption_batch(clips)


def test_an_open_clip_checkpoint_is_fine_tuned_on_clips(small, world, tmp_path):
    run = CaptionerRun(
        data=world / "train",
        held_out=world / "test",
        out=tmp_path,
        init_from=":".join(map(str, small)),
        steps=3,
        short_caption_steps=1,
        warmup_steps=1,
        decay_steps=1,
        batch_size=2,
        validation_clips=2,
    )
    report = train(run)
    assert report["all"]["clips"] == 6
    trained, before = load_coca(tmp_path / "captioner").model, VideoCoCa.from_open_clip(small[0], str(small[1]))
    after = dict(trained.named_parameters())
    changed = {name for name, value in before.named_parameters() if not torch.equal(after[name], value.half().float())}
    assert any(name.startswith("coca.text.") for name in changed) and "coca.visual.frame_embed" in changed


def test_an_init_from_that_open_clip_does_not_have_is_refused(small):
    with pytest.raises(ValueError, match="a start must be one of open_clip's CoCa models"):
        build_model(CaptionerRun(init_from="ViT-B-32:openai"))
    with pytest.raises(ValueError, match=r"and its weights, as NAME:WEIGHTS; got 'coca_small' and ''"):
        build_model(CaptionerRun(init_from="coca_small"))
    with pytest.raises(ValueError, match="open_clip must have the weights 'nowhere' of coca_small"):
        build_model(CaptionerRun(init_from="coca_small:nowhere"))


def dense(index: int) -> tuple[str, object]:
    scene = sample_scene(0, "test", index)
    return write_caption(scene, "dense", rng=clip_rng(0, "test", index, 9)), scene


def test_true_captions_score_one_and_a_wrong_colour_costs_precision_and_recall():
    texts, scenes = zip(*(dense(index) for index in range(40)), strict=True)
    found = precision_recall(texts, scenes)
    for name in SCORED_ATTRIBUTES:
        assert found[name] == {"precision": 1.0, "recall": 1.0}, name
    other = "purple" if scenes[0].things[0].colour != "purple" else "white"
    wrong = precision_recall([f"A {other} {scenes[0].things[0].shape} is here."], scenes[:1])
    assert wrong["colour"]["precision"] == 0 and wrong["colour"]["recall"] == 0 and wrong["shape"]["precision"] == 1
    assert wrong["camera"] == {"precision": None, "recall": 0.0}


def test_a_mirrored_caption_swaps_left_and_right_and_nothing_else():
    swap = {"left": "right", "right": "left", "left of": "right of", "right of": "left of"}
    for index in range(60):
        text, _ = dense(index)
        assert mirror_caption(mirror_caption(text)) == text
        before, after = read_caption(text), read_caption(mirror_caption(text))
        assert before.keys() == after.keys()
        for name in before:
            wanted = before[name]
            if name in ("direction", "relation"):
                wanted = {swap.get(value, value) for value in wanted}
            elif name == "camera":
                wanted = {" ".join(swap.get(word, word) for word in value.split()) for value in wanted}
            elif name == "place":
                wanted = {" left of ".join(reversed(value.split(" left of "))) for value in wanted}
            assert after[name] == wanted, (name, text)


def test_cider_is_ten_for_the_reference_zero_for_other_words_and_lower_for_common_ones():
    references = [["the ball is red"], ["the cube is blue"], ["the can falls from high above"]]
    same = [some[0] for some in references]
    assert cider(same, references) == pytest.approx(10)
    assert cider(["zebra"] * 3, references) == 0
    # "the" is in every reference and has no weight; "the ball" is in one.
    assert 0 == cider(["the"] * 3, references) < cider(["the ball", "the ball", "the ball"], references)


def test_caption_sets_of_the_experiment_differ_only_in_captions_and_one_in_twenty_is_the_label(world, tmp_path):
    base = open_bucket(world / "train", (64, 64, 17))
    for caption_set in CAPTION_SETS:
        write_variant(base, tmp_path / caption_set, caption_set, [f"A clip, the {n}th." for n in range(len(base))])
    labels, recaptioned, dense = (open_bucket(tmp_path / caption_set, base.format) for caption_set in CAPTION_SETS)
    for bucket in (labels, recaptioned, dense):
        assert len(bucket) == len(base) and np.array_equal(bucket.pixels, base.pixels)
    for n, captions in enumerate(base.captions):
        label, true = captions["moving"][0], captions["moving"][4]
        assert labels.captions[n] == {"moving": [label]}
        assert recaptioned.captions[n]["moving"] == [f"A clip, the {n}th."] * 19 + [label]
        assert dense.captions[n]["moving"] == [true] * 19 + [label]


def test_captioning_a_data_set_continues_where_it_stopped(world, tmp_path, monkeypatch):
    base = open_bucket(world / "train", (64, 64, 17))
    monkeypatch.setattr("training.evaluation.captions.BATCH", 2)
    batches = []

    class CountingCaptioner:
        def caption_batch(self, clips):
            batches.append(len(clips))
            return [f"{float(clip.mean()):.4f}" for clip in clips]

    whole = caption_bucket(CountingCaptioner(), base, tmp_path / "a.jsonl")
    assert len(whole) == len(base) == 6 and batches == [2, 2, 2]
    lines = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "b.jsonl").write_text(lines[: len(lines) // 2 + 3])  # three lines and a part of the next
    assert caption_bucket(CountingCaptioner(), base, tmp_path / "b.jsonl") == whole and batches[3:] == [2, 2]
    assert caption_bucket(CountingCaptioner(), base, tmp_path / "b.jsonl") == whole and len(batches) == 5
    assert (tmp_path / "b.jsonl").read_text() == lines
    assert caption_bucket(CountingCaptioner(), base, tmp_path / "c.jsonl", 3) == whole[:3] and batches[5:] == [2, 1]
    assert caption_bucket(CountingCaptioner(), base, tmp_path / "b.jsonl", 3) == whole[:3] and len(batches) == 7
    assert (tmp_path / "b.jsonl").read_text() == lines


def test_the_experiment_counts_a_prompt_once_for_any_number_of_seeds():
    correct = {"colour": np.array([[1.0, 0, 1, 1], [1, 0, 1, 1]]), "shape": np.array([[1.0, 1, 0, 1], [0, 1, 0, 1]])}
    found = summarize(correct)
    assert found["colour"]["mean"] == 0.75 and found["colour"]["by seed"] == [0.75, 0.75]
    assert found["shape"]["mean"] == 0.625 and found["shape"]["by seed"] == [0.75, 0.5]
    assert found["colour"]["low"] < 0.75 < found["colour"]["high"]  # two seeds that agree are no more evidence than one


def test_a_longer_bar_is_a_larger_share():
    some = {name: {"mean": 0.2, "low": 0.1, "high": 0.3} for name in (*JUDGED_ATTRIBUTES, "all")}
    report = {phrasing: dict.fromkeys(CAPTION_SETS, some) for phrasing in PROMPT_STYLES}
    more = report | {"plain": report["plain"] | {"dense": some | {"shape": {"mean": 0.9, "low": 0.8, "high": 1.0}}}}
    before, after = (np.asarray(draw_report(one)).astype(int) for one in (report, more))
    changed = np.argwhere((before != after).any(2))
    assert len(changed) and changed[:, 1].max() < before.shape[1] // 2  # nothing changed for the other phrasing
    assert (np.asarray(draw_report(more)) == (143, 188, 143)).all(2).sum() > (before == (143, 188, 143)).all(2).sum()


def test_caption_sets_are_compared_prompt_by_prompt():
    hard = np.array([[1.0, 1, 0, 0]])  # the third prompt is too hard for two of the sets, the fourth for all
    correct = {"labels": {"all": hard}, "recaptioned": {"all": hard}, "dense": {"all": np.array([[1.0, 1, 1, 0]])}}
    found = compare_sets(correct)
    assert found["recaptioned over labels"]["all"] == {"mean": 0, "low": 0, "high": 0}
    assert found["dense over recaptioned"]["all"]["mean"] == 0.25
