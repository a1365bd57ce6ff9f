"""A vision-language model that runs here: a real one of the Qwen family, as small as can be, is asked and heard."""

import json
import shutil

import pytest
import torch
from captioning.caption import PARTS, CaptionError, VideoCaption
from einops import repeat
from safetensors.torch import load_file, save_file

from captioning.captioner import load_captioner
from captioning.vision_language import VisionLanguageCaptioner, question_turn, text_part

TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = [
    f"<|{name}|>" for name in ("end", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
]
HUES = {"red": (1.0, -1.0, -1.0), "blue": (-1.0, -1.0, 1.0)}


def ground(hue: str):
    return repeat(torch.tensor(HUES[hue]), "c -> c 1 28 28")


def description(hue: str) -> dict[str, str]:
    same = {"action": "none", "camera": "still", "light": "even", "style": "drawing"}
    return {"subject": f"a {hue} ground", **same, "caption": f"A {hue} ground."}


@pytest.fixture(scope="module")
def eye(tmp_path_factory):
    """The folder of a tiny Qwen2.5-VL with random weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    letters = Tokenizer(models.BPE())
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    texts = [question_turn(ground("red"))["content"][-1]["text"], *(json.dumps(description(hue)) for hue in HUES)] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    letters.train_from_iterator(texts, trainer)
    words = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<|im_end|>", pad_token="<|end|>")
    pixels = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=28 * 28)
    processor = Qwen2_5_VLProcessor(pixels, words, Qwen2VLVideoProcessor(), chat_template=TEMPLATE)
    ids = dict(zip(SPECIAL, words.convert_tokens_to_ids(SPECIAL), strict=True))
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 4], "rope_theta": 10000.0},
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|end|>"],
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [0],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "eye"
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def teach(captioner: VisionLanguageCaptioner) -> None:
    """Train a model until it answers the question about each ground as it should."""
    said = {"add_generation_prompt": False, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    lessons = []
    for hue in HUES:
        question = question_turn(ground(hue))
        answer = {"role": "assistant", "content": [text_part(json.dumps(description(hue)))]}
        lesson = captioner.processor.apply_chat_template([question, answer], **said)
        asked = captioner.processor.apply_chat_template([question], **said | {"add_generation_prompt": True})
        labels = lesson["input_ids"].clone()
        labels[:, : asked["input_ids"].shape[1]] = -100  # which the loss leaves out
        lessons.append((lesson, labels))
    optimizer = torch.optim.AdamW(captioner.model.parameters(), lr=3e-3)
    for _ in range(400):  # about 100 are needed
        loss = sum(captioner.model(**lesson, labels=labels).loss for lesson, labels in lessons)
        if loss < 0.05:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_vision_language_model_says_what_it_sees(eye):
    captioner = VisionLanguageCaptioner(eye, tries=1, tokens=100)
    teach(captioner)
    for hue in HUES:
        expected = description(hue)
        parts = {part: expected[part] for part in PARTS}
        assert captioner.describe(ground(hue)) == VideoCaption(expected["caption"], parts)


def test_rubbish_is_refused_after_as_many_tries_as_there_are(eye):
    captioner = load_captioner(eye)
    assert isinstance(captioner, VisionLanguageCaptioner) and captioner.name == "eye"
    captioner.tries, captioner.tokens = 2, 16
    with pytest.raises(
        CaptionError, match="eye answered 2 times with something else than asked for: answer: Invalid JSON"
    ):
        captioner.describe(torch.zeros(3, 9, 48, 64))


def test_an_answer_that_is_sent_back_cannot_write_pictures_or_turns(eye):
    captioner = VisionLanguageCaptioner(eye, tokens=4)
    said = [("assistant", "<|image_pad|><|im_end|>"), ("user", "again")]
    turns = [question_turn(ground("red")), *({"role": role, "content": [text_part(text)]} for role, text in said)]
    assert isinstance(captioner._answer(captioner.model, turns), str)


def lacking_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("visual.patch_embed.proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def another_kind(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))


def with_code(folder):
    config = {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('this was run')")


def without_template(folder):
    (folder / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lacking_a_weight, "1 of its weights are missing, .*patch_embed.proj.weight among them"),
        (pickled, "model.safetensors"),
        (cut_short, "got"),
        (another_kind, "a gpt2 does not answer about pictures"),
        (with_code, "contains custom code"),
        (without_template, "it has no chat template"),
    ],
)
def test_what_is_no_such_model_or_is_damaged_is_refused(eye, tmp_path, harm, reason):
    folder = shutil.copytree(eye, tmp_path / "eye")
    harm(folder)
    with pytest.raises(CaptionError, match=f"a captioner must be .*{reason}"):
        VisionLanguageCaptioner(folder).describe(ground("red"))
