"""Prompt upsampling: by a toy model, by language models of transformers and behind endpoints, and in requests."""

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
from captioning.lexicon import match_attributes
from captioning.text_encoder import shorten_to_limit, train_tokenizer
from captioning.upsampler import (
    SUBFOLDERS,
    TrainedUpsampler,
    TransformersUpsampler,
    UpsamplerModel,
    _first_paragraph,
    load_upsampler,
    save_upsampler,
    sequence_ids,
    train_upsampler_tokenizer,
)
from dit.request import Request
from tests.chat_server import ChatServer
from tests.toy import COLOURS, SHAPES, draw_true_and_false_pairs
from training import prompt_pairs
from training.dataset import open_bucket
from training.evaluation.upsampler import read_prompt
from training.prompt_pairs import draw_near_miss
from training.salience import meanings_of
from training.train_upsampler import confidence_thresholds, token_weights
from training.world.scene import sample_scene
from training.world.words import write_caption
from vae.weights import WeightsError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(toy_upsampler, tmp_path_factory):
    path = tmp_path_factory.mktemp("upsampler")
    save_upsampler(toy_upsampler, path)
    return path


def test_an_upsampled_prompt_is_a_caption_and_keeps_the_prompt(toy_upsampler):
    for colour in COLOURS:
        for shape in SHAPES:
            text = toy_upsampler.upsample(f"{colour} {shape} falls", seed=1)
            assert text.startswith(f"A {colour} {shape} falls at ") and ". The camera " in text


def test_the_seed_determines_the_text(toy_upsampler):
    texts = [toy_upsampler.upsample("a red ball" if seed < 0 else "red ball", seed) for seed in range(8)]
    assert texts == [toy_upsampler.upsample("red ball", seed) for seed in range(8)]
    assert len(set(texts)) > 1 and all("red ball" in text for text in texts)
    assert toy_upsampler.upsample("red ball", 2**63 - 1)


def test_upsampling_leaves_the_global_random_state_unchanged(toy_upsampler):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    toy_upsampler.upsample("blue cube", 1)
    assert torch.equal(torch.rand(3), expected)


def test_a_caption_of_another_colour_makes_the_prompt_less_probable(toy_upsampler):
    right, wrong, other = (
        f"A {thing} spins at noon. The camera pans." for thing in ("red cube", "blue cube", "red ball")
    )
    log_probs = toy_upsampler.prompt_log_probs("red cube spins", [right, wrong, other])
    assert log_probs.sum(1).argmax() == 0
    config, confidence = toy_upsampler.model.config, toy_upsampler.confidence("red cube spins", log_probs)
    assert confidence[0, 0] >= config.min_log_prob
    assert (confidence[0, 1] >= config.min_gain > confidence[1:, 1]).all()


def test_log_probabilities_do_not_depend_on_padding(toy_upsampler):
    short, long = "A red cube rests at noon.", "A red cube rests at noon. The camera pans at night. The camera rests."
    together, alone = (
        toy_upsampler.prompt_log_probs("red cube", [short, long]),
        toy_upsampler.prompt_log_probs("red cube", [short]),
    )
    assert torch.allclose(together[:1], alone, atol=1e-4)


def test_a_trained_model_trusts_true_captions_only_and_a_fresh_one_none(toy_upsampler):
    torch.manual_seed(1)
    fresh = TrainedUpsampler(toy_upsampler.tokenizer, UpsamplerModel.from_config(toy_upsampler.model.config).eval())
    fresh.model.register_to_config(**confidence_thresholds(fresh, *draw_true_and_false_pairs(np.random.default_rng(2))))

    def trusted_share(upsampler: TrainedUpsampler, pairs) -> float:
        config = upsampler.model.config
        log_probs = ((prompt, upsampler.prompt_log_probs(prompt, [text])) for prompt, text in pairs)
        confidence = torch.cat([upsampler.confidence(*pair) for pair in log_probs])
        return float((confidence >= torch.tensor([config.min_log_prob, config.min_gain])).all(1).float().mean())

    true, false = draw_true_and_false_pairs(np.random.default_rng(3))
    assert trusted_share(toy_upsampler, true) > 0.9 and trusted_share(toy_upsampler, false) < 0.05
    assert trusted_share(fresh, true) < 0.1 and trusted_share(fresh, false) < 0.1


@pytest.mark.parametrize(
    ("prompt", "caption_text", "expected"),
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
def test_tokens_of_shared_meanings_have_more_weight(prompt, caption_text, expected):
    tokenizer = train_upsampler_tokenizer([caption_text], 340, 128)
    weighed = token_weights(tokenizer, caption_text, meanings_of(prompt) & meanings_of(caption_text))
    ids = tokenizer(caption_text, add_special_tokens=False)["input_ids"]
    heavy = "".join(tokenizer.decode([one]) for one, weight in zip(ids, weighed, strict=False) if weight > 1)
    assert len(weighed) == len(ids) + 1 and weighed[-1] == 1
    assert heavy.replace(" ", "") == expected


@pytest.mark.parametrize("drawn", [0.0, 1.0])
def test_a_near_miss_contradicts_the_prompt(world, monkeypatch, drawn):
    monkeypatch.setattr(prompt_pairs, "DRAWN_PROMPT_PROBABILITY", drawn)
    bucket = open_bucket(world / "train", (64, 64, 17))
    for number in range(60):
        clip = number % 6
        prompt, other = draw_near_miss(bucket, clip, number)
        wanted = read_prompt(prompt)
        if drawn:  # no lexicon reads it: use all attributes that a prompt of this clip may give
            whole = read_prompt(write_caption(bucket.scene(clip), "dense", rng=np.random.default_rng(0)))
            wanted = {name: whole[name] for name in ("colour", "shape", "event", "size", "direction") if name in whole}
        assert not all(match_attributes(wanted, read_prompt(other)).values()), (prompt, other)


@pytest.mark.parametrize("prompt", ["a purple dragon sleeps", "red ball and a dog", "一条龙", "red " * 30])
def test_an_unknown_or_long_prompt_stays_unchanged(toy_upsampler, prompt):
    assert toy_upsampler.upsample(f"  {prompt} ", 0) == prompt.strip()


def test_special_tokens_in_a_prompt_are_plain_text(toy_upsampler):
    plain, _ = sequence_ids(toy_upsampler.tokenizer, "<clip>", "red ball", "a red ball")
    marked, given = sequence_ids(toy_upsampler.tokenizer, "<clip>", "<short> red <end> ball", "a red ball")
    marks = {toy_upsampler.tokenizer.convert_tokens_to_ids(mark) for mark in ("<short>", "<end>", "<start>", "<pad>")}
    assert not marks & set(marked[1 : given - 1]) and marked[given:] == plain[-len(marked[given:]) :]


def test_an_upsampler_folder_loads_strictly(toy_upsampler, folder, tmp_path):
    expected = toy_upsampler.upsample("green ball", 3)
    assert load_upsampler(folder).upsample("green ball", 3) == expected
    save_upsampler(toy_upsampler, tmp_path)
    path = tmp_path / SUBFOLDERS[0] / "config.json"
    config = json.loads(path.read_text())
    old = {name: config.pop(new) for name, new in UpsamplerModel.old_config_names.items()}
    path.write_text(json.dumps(config | old))  # as written before the fields were renamed
    assert "least" in path.read_text() and load_upsampler(tmp_path).upsample("green ball", 3) == expected
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layers": 3}))
    with pytest.raises(WeightsError, match="is missing"):
        load_upsampler(tmp_path)


# Language models


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
def test_a_language_model_of_transformers_upsamples_by_seed(language_model, template, monkeypatch):
    monkeypatch.setattr("captioning.upsampler.ANSWER_TOKENS", 120)
    model = load_upsampler(str(language_model))
    assert isinstance(model, TransformersUpsampler)
    model.tokenizer.chat_template = template
    texts = [model.upsample("a red ball", seed) for seed in range(6)]
    assert texts[1] == model.upsample("a red ball", 1)
    assert len(set(texts)) > 2 and all(text and "\n" not in text for text in texts)


def test_thoughts_of_a_language_model_are_removed_from_its_answer():
    assert _first_paragraph("<think>\nred, or blue?</think>\n\nA red ball.\n\nAnything else?") == "A red ball."
    assert _first_paragraph("<think>\nOkay, the user wants") == ""


def test_answer_schemas_are_strict():
    for kind in (Description, CaptionAnswer):  # OpenAI's endpoint refuses other schemas
        schema = kind.model_json_schema()
        assert schema["additionalProperties"] is False and sorted(schema["required"]) == sorted(schema["properties"])


def test_whole_sentences_are_dropped_until_the_text_fits_the_token_limit(toy_upsampler):
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


def test_what_is_no_upsampler_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(
        ValueError, match=r"an upsampler must be a folder with writer and tokenizer, .* got '/.*nobody'"
    ):
        load_upsampler(str(tmp_path / "nobody"))
    with pytest.raises(ValueError, match=r"given with its model, as http://localhost:8000/v1#MODEL"):
        load_upsampler("http://localhost:8000/v1")


GOOD = {"caption": "A red ball bounces on sand at noon."}


def test_an_endpoint_gets_instructions_and_examples():
    with ChatServer("no JSON", json.dumps(GOOD)) as server:
        upsampler = load_upsampler(f"{server.url}#scribe")
        assert upsampler.name == f"{server.url}#scribe" and upsampler.upsample("a red ball", 7) == GOOD["caption"]
    first, second = server.requests
    assert first["model"] == "scribe" and first["seed"] == 7
    assert "Keep everything that was asked for" in first["messages"][0]["content"]
    assert first["messages"][-1]["content"] == "Request: a red ball" and len(first["messages"]) > 5
    assert "does not fit the schema" in second["messages"][-1]["content"]


# Upsampling in requests


@pytest.fixture
def longtake(tiny_model, tmp_path, monkeypatch, capsys):
    """Return a function that runs a command with the tiny model and returns its exit code and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        model = ["--model", str(tiny_model), "--steps", "1"] if words[0] != "again" else []
        code = main([str(word) for word in (*words, *model)])
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            "never JSON",
            "scribe at 127.0.0.1 answered 2 times with something else than asked for: answer: Invalid JSON",
        ),
        (json.dumps({"caption": ""}), "answered 2 times with something else than asked for: caption: "),
        (401, "scribe at 127.0.0.1 refused with status 401"),
        ("slow", "scribe at 127.0.0.1 gave no answer in 0.5 seconds"),
        ("gone", "scribe at 127.0.0.1 cannot be reached: "),
    ],
)
def test_a_failing_endpoint_exits_with_one_sentence(longtake, tmp_path, monkeypatch, answer, reason):
    monkeypatch.setattr("captioning.upsampler.EndpointUpsampler.__init__.__defaults__", (0.5, 2))
    with ChatServer(answer) as server:
        name = f"{server.url}#scribe"
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
        ("http://#scribe", "an endpoint must be an address"),
    ],
)
def test_a_bad_upsampler_name_exits_with_2(longtake, tmp_path, monkeypatch, name, reason):
    monkeypatch.setattr("app.registry.UPSAMPLER", tmp_path / "none")
    code, err = longtake("generate", "a red ball", "--upsample", name, "-o", "c.mp4")
    assert code == 2 and reason in err.splitlines()[-1] and not list(tmp_path.iterdir())


def test_both_prompts_are_stored_in_the_file_and_again_uses_them(longtake, folder, tmp_path):
    code, err = longtake("generate", "red ball", "--seed", 1, "--upsample", folder, "-o", "c.mp4")
    made = read_request(tmp_path / "c.mp4")
    assert code == 0 and made.prompt == "red ball" and made.upsample == str(folder) and made.upsampled_prompt
    assert made.upsampled_prompt.startswith("A red ball") and f"'red ball' is read as {made.upsampled_prompt!r}" in err
    (hidden := folder.with_name("hidden")).mkdir()
    (folder / SUBFOLDERS[0]).rename(hidden / SUBFOLDERS[0])  # a stored text needs no upsampler
    assert longtake("again", "c.mp4", "-o", "d.mp4")[0] == 0
    (hidden / SUBFOLDERS[0]).rename(folder / SUBFOLDERS[0])
    assert (tmp_path / "d.mp4").read_bytes() == (tmp_path / "c.mp4").read_bytes()

    texts = {seed: load_upsampler(folder).upsample("red ball", seed) for seed in range(2, 8)}
    seed = next(seed for seed, text in texts.items() if text != made.upsampled_prompt)
    longtake("again", "c.mp4", "--seed", seed, "--upsample", folder, "-o", "e.mp4")
    assert read_request(tmp_path / "e.mp4").upsampled_prompt == texts[seed]
    longtake("again", "c.mp4", "--prompt", "blue cube", "--upsample", folder, "-o", "f.mp4")
    assert read_request(tmp_path / "f.mp4").upsampled_prompt.startswith("A blue cube")


def test_an_upsampled_prompt_can_be_edited_and_removed(longtake, folder, tmp_path):
    longtake("generate", "red ball", "--upsample", folder, "-o", "c.mp4")
    longtake("again", "c.mp4", "--upsampled-prompt", "a red ball by hand", "-o", "d.mp4")
    longtake("again", "d.mp4", "--seed", 9, "-o", "e.mp4")  # an edited text does not change with the seed
    for name in ("d.mp4", "e.mp4"):
        edited = read_request(tmp_path / name)
        assert (edited.prompt, edited.upsample, edited.upsampled_prompt) == ("red ball", None, "a red ball by hand")
    for name in ("c.mp4", "e.mp4"):
        longtake("again", name, "--upsample", "none", "--seed", 0, "-o", "f.mp4")
        undone = read_request(tmp_path / "f.mp4")
        assert undone.upsample is None and undone.upsampled_prompt is None
        longtake("generate", "red ball", "-o", "plain.mp4")
        assert (tmp_path / "f.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()


def test_the_model_is_conditioned_on_the_upsampled_prompt(tiny_model):
    from dit.pipeline import Pipeline
    from dit.request import RequestError

    pipeline = Pipeline.from_pretrained(tiny_model)
    make = lambda **texts: next(pipeline.generate([Request(seconds=1.1, steps=1, **texts)])).latents
    plain, written = make(prompt="red"), make(prompt="red", upsampled_prompt="a blue cube")
    assert torch.equal(written, make(prompt="a blue cube")) and not torch.equal(written, plain)
    with pytest.raises(RequestError, match="upsample needs upsampled_prompt"):
        make(prompt="red", upsample="auto")


def test_a_request_without_upsampling_is_stored_as_before():
    assert "upsample" not in (old := Request(prompt="red").to_json()) and "upsampled_prompt" not in old
    assert Request.from_json(old) == Request(prompt="red") == Request.from_dict({"prompt": "red", "upsample": "none"})


def test_help_imports_no_upsampler():
    code = "import sys, app.cli; app.cli.make_parser(); print({'torch', 'captioning.upsampler'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_evaluation_prompts_are_rephrased_and_upsampled(folder, tiny_model):
    from dit.pipeline import Pipeline
    from training.evaluation.evaluate import PHRASINGS, PromptStyle, prompt_of

    scene = sample_scene(0, "test", 5)
    assert len({prompt_of(scene, words) for words in PHRASINGS}) == len(PHRASINGS)
    assert not prompt_of(scene, "chinese").isascii()
    pipeline = Pipeline.from_pretrained(tiny_model)
    for request in PromptStyle("label", load_upsampler(folder)).requests([scene], pipeline):
        assert (
            request.prompt == prompt_of(scene, "label") and request.upsampled_prompt and request.upsample == str(folder)
        )
    (plain,) = PromptStyle().requests([scene], pipeline)
    assert plain == Request(prompt=prompt_of(scene), size=(64, 64), seconds=17 / 8)
