"""Short prompts written out: by a writer taught in seconds, by language models here, and by ones elsewhere."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

from app.cli import main
from app.render import read_request
from captioning.caption import Description
from captioning.endpoint import CaptionAnswer
from captioning.text_encoder import shorten_to_limit, train_tokenizer
from captioning.upsampler import (
    SUBFOLDERS,
    TrainedUpsampler,
    TransformersUpsampler,
    UpsamplerModel,
    _paragraph,
    load_upsampler,
    save_upsampler,
    sequence_ids,
    train_upsampler_tokenizer,
)
from dit.request import Request
from tests.test_captioner import Server
from tests.toy import COLOURS, SHAPES, draw_true_and_false_pairs
from training import prompt_pairs
from training.dataset import open_bucket
from training.evaluation.upsampler import read_prompt, verdicts
from training.prompt_pairs import draw_near_miss
from training.salience import meanings_of
from training.train_upsampler import confidence_thresholds, token_weights
from training.world.scene import sample_scene
from training.world.words import write_caption
from vae.weights import WeightsError


@pytest.fixture(scope="module")
def folder(toy_upsampler, tmp_path_factory):
    path = tmp_path_factory.mktemp("upsampler")
    save_upsampler(toy_upsampler, path)
    return path


def test_a_prompt_is_written_out_in_the_captions_dialect_and_keeps_what_it_says(toy_upsampler):
    for colour in COLOURS:
        for shape in SHAPES:
            written = toy_upsampler.upsample(f"{colour} {shape} falls", seed=1)
            assert written.startswith(f"A {colour} {shape} falls at ") and ". The camera " in written


def test_the_same_seed_writes_the_same_text_and_others_write_others(toy_upsampler):
    texts = [toy_upsampler.upsample("a red ball" if seed < 0 else "red ball", seed) for seed in range(8)]
    assert texts == [toy_upsampler.upsample("red ball", seed) for seed in range(8)]
    assert len(set(texts)) > 1 and all("red ball" in text for text in texts)
    assert toy_upsampler.upsample("red ball", 2**63 - 1)


def test_random_numbers_of_others_go_on_as_if_nothing_had_been_written(toy_upsampler):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    toy_upsampler.upsample("blue cube", 1)
    assert torch.equal(torch.rand(3), expected)


def test_a_caption_of_another_colour_does_not_explain_the_prompt(toy_upsampler):
    right, wrong, other = (
        f"A {thing} spins at noon. The camera pans." for thing in ("red cube", "blue cube", "red ball")
    )
    found = toy_upsampler.prompt_log_probs("red cube spins", [right, wrong, other])
    assert found.sum(1).argmax() == 0
    config, doubts = toy_upsampler.model.config, toy_upsampler.confidence("red cube spins", found)
    assert doubts[0, 0] >= config.min_log_prob and (doubts[0, 1] >= config.min_gain > doubts[1:, 1]).all()


def test_a_prompt_is_as_probable_alone_as_beside_longer_captions(toy_upsampler):
    short, long = "A red cube rests at noon.", "A red cube rests at noon. The camera pans at night. The camera rests."
    together, alone = toy_upsampler.prompt_log_probs("red cube", [short, long]), toy_upsampler.prompt_log_probs("red cube", [short])
    assert torch.allclose(together[:1], alone, atol=1e-4)


def test_true_captions_are_believed_and_others_not_by_a_writer_that_learned_and_by_a_fresh_one_neither(toy_upsampler):
    torch.manual_seed(1)
    fresh = TrainedUpsampler(toy_upsampler.tokenizer, UpsamplerModel.from_config(toy_upsampler.model.config).eval())
    fresh.model.register_to_config(**confidence_thresholds(fresh, *draw_true_and_false_pairs(np.random.default_rng(2))))

    def believed(writer: TrainedUpsampler, pairs) -> float:
        config = writer.writer.config
        doubts = torch.cat([writer.confidence(short, writer.prompt_log_probs(short, [text])) for short, text in pairs])
        return float((doubts >= torch.tensor([config.min_log_prob, config.min_gain])).all(1).float().mean())

    true, false = draw_true_and_false_pairs(np.random.default_rng(3))
    assert believed(toy_upsampler, true) > 0.9 and believed(toy_upsampler, false) < 0.05
    assert believed(fresh, true) < 0.1 and believed(fresh, false) < 0.1


@pytest.mark.parametrize(
    ("short", "told", "expected"),
    [
        (
            "a red ball rolls to the left",
            "A red sphere slides to the left at noon. The camera pans to the left.",
            "redsphereslidestotheleft",
        ),
        ("一个红球", "A red sphere slides to the left.", "redsphere"),
        ("a dragon", "A red sphere slides to the left.", ""),
        ("a red ball", "A blue cube.", ""),
    ],
)
def test_words_of_what_both_texts_say_count_for_more(toy_upsampler, short, told, expected):
    tokenizer = train_upsampler_tokenizer([told], 340, 128)
    weighed = token_weights(tokenizer, told, meanings_of(short) & meanings_of(told))
    ids = tokenizer(told, add_special_tokens=False)["input_ids"]
    heavy = "".join(tokenizer.decode([one]) for one, weight in zip(ids, weighed, strict=False) if weight > 1)
    assert len(weighed) == len(ids) + 1 and weighed[-1] == 1
    assert heavy.replace(" ", "") == expected


@pytest.mark.parametrize("drawn", [0.0, 1.0])
def test_a_near_miss_contradicts_what_the_short_text_says(world, monkeypatch, drawn):
    monkeypatch.setattr(prompt_pairs, "DRAWN_PROMPT_PROBABILITY", drawn)
    bucket = open_bucket(world / "train", (64, 64, 17))
    for number in range(60):
        clip = number % 6
        short, other = draw_near_miss(bucket, clip, number)
        told = read_prompt(short)
        if drawn:  # in words that cannot be read: all that a short text may say, of the clip that it is of
            whole = read_prompt(write_caption(bucket.scene(clip), "dense", rng=np.random.default_rng(0)))
            told = {name: whole[name] for name in ("colour", "shape", "event", "size", "direction") if name in whole}
        assert not all(verdicts(told, read_prompt(other)).values()), (short, other)


@pytest.mark.parametrize("prompt", ["a purple dragon sleeps", "red ball and a dog", "一条龙", "red " * 30])
def test_what_the_writer_does_not_know_or_is_long_stays_as_it_was_typed(toy_upsampler, prompt):
    assert toy_upsampler.upsample(f"  {prompt} ", 0) == prompt.strip()


def test_marks_in_a_prompt_are_only_words(toy_upsampler):
    plain, _ = sequence_ids(toy_upsampler.tokenizer, "<clip>", "red ball", "a red ball")
    marked, given = sequence_ids(toy_upsampler.tokenizer, "<clip>", "<short> red <end> ball", "a red ball")
    marks = {toy_upsampler.tokenizer.convert_tokens_to_ids(mark) for mark in ("<short>", "<end>", "<start>", "<pad>")}
    assert not marks & set(marked[1 : given - 1]) and marked[given:] == plain[-len(marked[given:]) :]


def test_an_upsampler_is_loaded_from_its_folder_strictly(toy_upsampler, folder, tmp_path):
    assert load_upsampler(folder).upsample("green ball", 3) == toy_upsampler.upsample("green ball", 3)
    save_upsampler(toy_upsampler, tmp_path)
    path = tmp_path / SUBFOLDERS[0] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layers": 3}))
    with pytest.raises(WeightsError, match="is missing"):
        load_upsampler(tmp_path)


# Language models of others


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("llama")
    tokenizer = train_tokenizer(["a red ball bounces on the grass. it is noon."], 300, 4096)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"])
def test_a_language_model_of_transformers_writes_by_its_seed(language_model, template, monkeypatch):
    monkeypatch.setattr("captioning.upsampler.ROOM", 120)
    model = load_upsampler(str(language_model))
    assert isinstance(model, TransformersUpsampler)
    model.tokenizer.chat_template = template
    texts = [model.upsample("a red ball", seed) for seed in range(6)]
    assert texts[1] == model.upsample("a red ball", 1)
    assert len(set(texts)) > 2 and all(text and "\n" not in text for text in texts)


def test_thoughts_of_a_language_model_are_not_what_it_says_and_neither_is_half_a_sentence():
    assert _paragraph("<think>\nred, or blue?</think>\n\nA red ball.\n\nAnything else?") == "A red ball."
    assert _paragraph("<think>\nOkay, the user wants") == ""


def test_what_is_asked_of_a_model_elsewhere_is_all_that_it_may_answer():
    for kind in (Description, CaptionAnswer):  # or OpenAI's own endpoint refuses the schema
        schema = kind.model_json_schema()
        assert schema["additionalProperties"] is False and sorted(schema["required"]) == sorted(schema["properties"])


def test_only_whole_sentences_that_the_model_can_read_are_kept(toy_upsampler):
    tokenizer = copy.copy(toy_upsampler.tokenizer)
    text = "A red ball falls. It is 3.5 cm wide! Noon. And so on"
    assert shorten_to_limit(tokenizer, text) == text
    for kept in (
        "A red ball falls. It is 3.5 cm wide! Noon.",
        "A red ball falls. It is 3.5 cm wide!",
        "A red ball falls.",
    ):
        tokenizer.model_max_length = len(tokenizer(kept)["input_ids"])
        assert shorten_to_limit(tokenizer, text) == kept
    tokenizer.model_max_length = 3
    assert shorten_to_limit(tokenizer, text) == ""


def test_what_is_no_upsampler_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(
        ValueError, match=r"an upsampler must be a folder with writer and tokenizer, .* got '/.*nobody'"
    ):
        load_upsampler(str(tmp_path / "nobody"))
    with pytest.raises(ValueError, match=r"given with its model, as http://localhost:8000/v1#MODEL"):
        load_upsampler("http://localhost:8000/v1")


GOOD = {"caption": "A red ball bounces on sand at noon."}


def test_a_model_elsewhere_is_told_what_to_do_and_shown_how():
    with Server("no JSON", json.dumps(GOOD)) as server:
        upsampler = load_upsampler(f"{server.url}#pen")
        assert upsampler.name == f"{server.url}#pen" and upsampler.upsample("a red ball", 7) == GOOD["caption"]
    first, second = server.asked
    assert first["model"] == "pen" and first["seed"] == 7
    assert "Keep everything that was asked for" in first["messages"][0]["content"]
    assert first["messages"][-1]["content"] == "Request: a red ball" and len(first["messages"]) > 5
    assert "does not fit the schema" in second["messages"][-1]["content"]


# What happens to a request


@pytest.fixture
def longtake(tiny_model, tmp_path, monkeypatch, capsys):
    """Run a command with the tiny model; return its exit code and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        model = ["--model", str(tiny_model), "--steps", "1"] if words[0] != "again" else []
        code = main([str(word) for word in (*words, *model)])
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("never JSON", "pen at 127.0.0.1 answered 2 times with something else than asked for: answer: Invalid JSON"),
        (json.dumps({"caption": ""}), "answered 2 times with something else than asked for: caption: "),
        (401, "pen at 127.0.0.1 refused with status 401"),
        ("slow", "pen at 127.0.0.1 gave no answer in 0.5 seconds"),
        ("gone", "pen at 127.0.0.1 cannot be reached: "),
    ],
)
def test_an_endpoint_that_is_wrong_slow_or_gone_is_told_of_in_a_sentence(
    longtake, tmp_path, monkeypatch, answer, reason
):
    monkeypatch.setattr("captioning.upsampler.Asked.__init__.__defaults__", (0.5, 2))
    with Server(answer) as server:
        name = f"{server.url}#pen"
        if answer != "gone":
            code, err = longtake("generate", "a red ball", "--upsample", name, "-o", "c.mp4")
    if answer == "gone":
        code, err = longtake("generate", "a red ball", "--upsample", name, "-o", "c.mp4")
    (line,) = err.splitlines()
    assert code == 1 and line.startswith("longtake: ") and reason in line and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("auto", "upsample auto needs the shipped upsampler"),
        ("./nobody/is/here", "an upsampler must be a folder with writer and tokenizer"),
        ("http://localhost:1/v1", "an endpoint must be given with its model"),
        ("http://#pen", "an endpoint must be an address"),
    ],
)
def test_a_name_that_is_no_upsamplers_is_bad_input(longtake, tmp_path, monkeypatch, name, reason):
    monkeypatch.setattr("app.registry.UPSAMPLER", tmp_path / "none")
    code, err = longtake("generate", "a red ball", "--upsample", name, "-o", "c.mp4")
    assert code == 2 and reason in err.splitlines()[-1] and not list(tmp_path.iterdir())


def test_both_texts_travel_in_the_file_and_again_reads_them(longtake, folder, tmp_path):
    code, err = longtake("generate", "red ball", "--seed", 1, "--upsample", folder, "-o", "c.mp4")
    made = read_request(tmp_path / "c.mp4")
    assert code == 0 and made.prompt == "red ball" and made.upsample == str(folder) and made.upsampled_prompt
    assert made.upsampled_prompt.startswith("A red ball") and f"'red ball' is read as {made.upsampled_prompt!r}" in err
    (hidden := folder.with_name("hidden")).mkdir()
    (folder / SUBFOLDERS[0]).rename(hidden / SUBFOLDERS[0])  # what is stored is not written anew
    assert longtake("again", "c.mp4", "-o", "d.mp4")[0] == 0
    (hidden / SUBFOLDERS[0]).rename(folder / SUBFOLDERS[0])
    assert (tmp_path / "d.mp4").read_bytes() == (tmp_path / "c.mp4").read_bytes()

    texts = {seed: load_upsampler(folder).upsample("red ball", seed) for seed in range(2, 8)}
    seed = next(seed for seed, text in texts.items() if text != made.upsampled_prompt)
    longtake("again", "c.mp4", "--seed", seed, "-o", "e.mp4")
    assert read_request(tmp_path / "e.mp4").upsampled_prompt == texts[seed]
    longtake("again", "c.mp4", "--prompt", "blue cube", "-o", "f.mp4")
    assert read_request(tmp_path / "f.mp4").upsampled_prompt.startswith("A blue cube")


def test_what_was_written_can_be_edited_and_undone(longtake, folder, tmp_path):
    longtake("generate", "red ball", "--upsample", folder, "-o", "c.mp4")
    longtake("again", "c.mp4", "--upsampled-prompt", "a red ball by hand", "-o", "d.mp4")
    longtake("again", "d.mp4", "--seed", 9, "-o", "e.mp4")  # no upsampler wrote it, so no seed changes it
    for name in ("d.mp4", "e.mp4"):
        edited = read_request(tmp_path / name)
        assert (edited.prompt, edited.upsample, edited.upsampled_prompt) == ("red ball", None, "a red ball by hand")
    for name in ("c.mp4", "e.mp4"):
        longtake("again", name, "--upsample", "none", "--seed", 0, "-o", "f.mp4")
        undone = read_request(tmp_path / "f.mp4")
        assert undone.upsample is None and undone.upsampled_prompt is None
        longtake("generate", "red ball", "-o", "plain.mp4")
        assert (tmp_path / "f.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()


def test_the_model_reads_what_was_written(tiny_model):
    from dit.pipeline import Pipeline
    from dit.request import RequestError

    pipeline = Pipeline.from_pretrained(tiny_model)
    make = lambda **texts: next(pipeline.generate([Request(seconds=1.1, steps=1, **texts)])).latents
    plain, written = make(prompt="red"), make(prompt="red", upsampled_prompt="a blue cube")
    assert torch.equal(written, make(prompt="a blue cube")) and not torch.equal(written, plain)
    with pytest.raises(RequestError, match="upsample needs upsampled_prompt"):
        make(prompt="red", upsample="auto")


def test_a_request_without_an_upsampler_is_stored_as_it_always_was():
    assert "upsample" not in (old := Request(prompt="red").to_json()) and "upsampled_prompt" not in old
    assert Request.from_json(old) == Request(prompt="red") == Request.from_dict({"prompt": "red", "upsample": "none"})


def test_help_imports_no_upsampler():
    code = "import sys, app.cli; app.cli.parser(); print({'torch', 'captioning.upsampler'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_prompts_are_evaluated_in_other_words_and_written_out(folder, tiny_model):
    from dit.pipeline import Pipeline
    from training.evaluation.evaluate import PHRASINGS, PromptStyle, prompt_of

    scene = sample_scene(0, "test", 5)
    assert len({prompt_of(scene, words) for words in PHRASINGS}) == len(PHRASINGS)
    assert not prompt_of(scene, "chinese").isascii()
    pipeline = Pipeline.from_pretrained(tiny_model)
    for request in PromptStyle("label", load_upsampler(folder)).requests([scene], pipeline):
        assert request.prompt == prompt_of(scene, "label") and request.upsampled_prompt and request.upsample == str(folder)
    (plain,) = PromptStyle().requests([scene], pipeline)
    assert plain == Request(prompt=prompt_of(scene), size=(64, 64), seconds=17 / 8)
