"""The probe of text encoders, and the paraphrases that no training reads."""

import json

import numpy as np
import pytest
import torch

from captioning.prompt_encoder import PromptEncoder
from captioning.text_encoder import TextTower, encode_prompts, train_tokenizer
from training.dataset import open_bucket, write_captions
from training.evaluation.paraphrases import LEXICON, MORE_WORDS, PARAPHRASES, write_paraphrase
from training.evaluation.probe import (
    PROBED_ATTRIBUTES,
    below_bar,
    caption_labels,
    fit_probe,
    layer_means,
    main,
    probe_encoder,
    table,
)
from training.evaluation.reading import asked_keys
from training.synonyms import ENGLISH_SYNONYMS, draw_prompt
from training.world import sample_scene
from training.world.scene import clip_rng
from training.world.words import read_caption, write_caption
from training.world.words_en import WETNESS, WORDS

CLIPS = 300
SOME = ("colour", "ground", "sky", "time")
EVERY = {"colour", "shape", "size", "material", "event", "direction", "speed", "camera"}
EVERY |= {"ground", "wetness", "sky", "time"}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """Captions of scenes, without pixels."""
    folder = tmp_path_factory.mktemp("captions") / "16x16x33"
    folder.mkdir()
    state = {"seed": 0, "split": "test", "first": 0, "fps": 12.0, "clips": CLIPS, "edition": 2, "made": CLIPS}
    (folder / "state.json").write_text(json.dumps(state))
    scenes = (sample_scene(0, "test", index, 32 / 12, 2) for index in range(CLIPS))
    lines = [json.dumps(write_captions(scene), ensure_ascii=False) + "\n" for scene in scenes]
    (folder / "captions.jsonl").write_text("".join(lines), encoding="utf-8")
    return open_bucket(folder.parent, (16, 16, 33))


@pytest.fixture(scope="module")
def tokenizer(bucket):
    return train_tokenizer((text for one in bucket.captions for text in one["moving"]), 600, 200)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    torch.manual_seed(0)
    return PromptEncoder(len(tokenizer), 200, 256, 2, 1).eval()


def test_labels_are_the_true_values_that_a_caption_names(bucket):
    counts: dict[str, int] = dict.fromkeys(PROBED_ATTRIBUTES, 0)
    for clip in range(40):
        scene = bucket.scene(clip)
        for text in bucket.captions[clip]["moving"]:
            for name, value in caption_labels(text, scene).items():
                assert value in read_caption(text)[name]
                counts[name] += 1
                assert len(scene.things) == 1 or name not in ("colour", "shape", "size", "material")
    assert all(counts.values())


def test_raw_embeddings_of_named_attributes_are_readable(bucket, tokenizer, encoder):
    found = probe_encoder(tokenizer, encoder, bucket, CLIPS, SOME)
    assert set(found) == set(SOME) and list(found["sky"]) == ["embedding", "layer 1", "output"]
    for name, row in found.items():
        assert row["embedding"].accuracy > max(0.75, row["embedding"].chance + 0.3), name
    assert table(found).count("\n") == len(found) + 1
    low = below_bar(found)
    assert low == {name: row["output"].accuracy for name, row in found.items() if row["output"].accuracy < 0.95}
    assert set(below_bar(found, 1.01)) == set(found) and not below_bar(found, 0)


def test_shuffled_labels_are_at_chance(bucket, tokenizer, encoder):
    texts, labels, groups = [], [], []
    for clip in range(CLIPS):
        for text in bucket.captions[clip]["moving"][1:7]:
            if "ground" in caption_labels(text, bucket.scene(clip)):
                texts.append(text)
                labels.append(bucket.scene(clip).ground)
                groups.append(clip)
    means = layer_means(texts, tokenizer, encoder)["embedding"]
    true = fit_probe(means, labels, groups)
    rng = np.random.default_rng(0)
    shuffled = [fit_probe(means, rng.permutation(labels).tolist(), groups).accuracy for _ in range(3)]
    assert true.accuracy > 0.85 and 0.15 * len(texts) < true.captions < 0.35 * len(texts)
    assert max(shuffled) < 0.3  # one of five grounds


def test_a_probe_tests_on_clips_that_it_did_not_train_on():
    features = torch.eye(20).repeat_interleave(2, 0)  # a feature of its own for each clip: nothing carries over
    labels = ["a", "b"] * 20
    own = [label for label in np.random.default_rng(0).permutation(labels)[:20] for _ in range(2)]
    found = fit_probe(features, own, [index // 2 for index in range(40)])
    assert found.captions == 10 and found.accuracy < 0.9


@pytest.mark.parametrize("kind", [PromptEncoder, TextTower])
def test_the_last_layer_is_what_the_model_reads(tokenizer, kind):
    torch.manual_seed(0)
    if kind is PromptEncoder:
        encoder = PromptEncoder(len(tokenizer), 200, 32, 2, 2).eval()
    else:
        encoder = TextTower(len(tokenizer), 200, 32, 2, 2).eval()
    texts = ["a red ball", "the blue cube spins while the camera orbits left at night"]
    means = layer_means(texts, tokenizer, encoder)
    assert list(means) == ["embedding", "layer 1", "layer 2", "output"]
    with torch.no_grad():
        encoded = encode_prompts(texts, tokenizer, encoder)
    wanted = torch.stack([part.mean(0) for part in encoded.token_embeddings.split(encoded.token_counts)])
    torch.testing.assert_close(means["output"], wanted, rtol=1e-4, atol=1e-5)


def test_the_command_probes_a_model_folder(tiny_model, bucket, capsys, tmp_path):
    main([str(tiny_model), "--data", str(bucket.folder.parent), "--clips", "60", "--json", str(tmp_path / "p.json")])
    printed = capsys.readouterr().out
    assert "| camera |" in printed and "below 95%:" in printed
    assert json.loads((tmp_path / "p.json").read_text())["sky"]["embedding"]["captions"] > 0


def tokens(tables) -> set[str]:
    return {
        token
        for table in tables
        for values in table.values()
        for phrases in values.values()
        for phrase in phrases
        for token in LEXICON.split(phrase.replace("~", ""))
    }


def test_no_training_reads_a_paraphrase():
    known = tokens([WORDS, WETNESS, ENGLISH_SYNONYMS])
    for index in range(60):
        scene, rng = sample_scene(0, "train", index, 2.75, 2), clip_rng(0, "train", index, 7)
        known |= {
            token
            for kind in ("label", "plain", "dense")
            for token in LEXICON.split(write_caption(scene, kind, rng=rng))
        }
        known |= set(LEXICON.split(draw_prompt(scene, "en", rng, synonym_probability=1.0)))
    for attribute, values in MORE_WORDS.items():
        for phrases in values.values():
            for phrase in phrases:
                assert set(LEXICON.split(phrase.replace("~", ""))) - known, (attribute, phrase)


def test_a_paraphrase_says_what_the_scene_shows_in_other_words():
    for index in range(80):
        scene = sample_scene(0, "test", index, 2.75, 2)
        text = write_paraphrase(scene, clip_rng(0, "test", index, 7), EVERY)
        stated = LEXICON.read_attributes(text)
        keys = {key[-1] for key in asked_keys(scene, stated)}
        assert {
            "colour",
            "shape",
            "size",
            "material",
            "motion",
            "camera",
            "ground",
            "wetness",
            "sky",
            "time",
        } <= keys, text
        for name in ("camera", "ground", "sky", "time", "event"):
            assert stated[name] == {getattr(scene, name)}, text
        assert not any(word in text.split() for word in (scene.things[0].colour, scene.things[0].shape)), text
    assert all(phrases for values in (PARAPHRASES["colour"], PARAPHRASES["ground"]) for phrases in values.values())
