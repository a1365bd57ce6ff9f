"""Vision-language captioners of transformers, with a tiny model of the Qwen family."""

import json
import shutil

import pytest
import torch
from einops import repeat
from safetensors.torch import load_file, save_file

from captioning.caption import PARTS, CaptionError, VideoCaption
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

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = [question_turn(ground("red"))["content"][-1]["text"], *(json.dumps(description(hue)) for hue in HUES)] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|end|>")
    image_processor = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=28 * 28)
    processor = Qwen2_5_VLProcessor(image_processor, tokenizer, Qwen2VLVideoProcessor(), chat_template=TEMPLATE)
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
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
    """Train a model until it captions each ground correctly."""
    options = {"add_generation_prompt": False, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    examples = []
    for hue in HUES:
        question = question_turn(ground(hue))
        answer = {"role": "assistant", "content": [text_part(json.dumps(description(hue)))]}
        example = captioner.processor.apply_chat_template([question, answer], **options)
        prompt = captioner.processor.apply_chat_template([question], **options | {"add_generation_prompt": True})
        labels = example["input_ids"].clone()
        labels[:, : prompt["input_ids"].shape[1]] = -100  # ignored by the loss
        examples.append((example, labels))
    optimizer = torch.optim.AdamW(captioner.model.parameters(), lr=3e-3)
    for _ in range(400):  # about 100 are needed
        loss = sum(captioner.model(**example, labels=labels).loss for example, labels in examples)
        if loss < 0.05:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.slow
def test_a_trained_vision_language_model_captions_images(eye):
    captioner = VisionLanguageCaptioner(eye, tries=1, max_new_tokens=100)
    teach(captioner)
    for hue in HUES:
        expected = description(hue)
        parts = {part: expected[part] for part in PARTS}
        assert captioner.describe(ground(hue)) == VideoCaption(expected["caption"], parts)


def test_an_invalid_answer_raises_after_all_tries(eye):
    captioner = load_captioner(eye)
    assert isinstance(captioner, VisionLanguageCaptioner) and captioner.name == "eye"
    captioner.tries, captioner.max_new_tokens = 2, 16
    with pytest.raises(
        CaptionError, match="eye answered 2 times with something else than asked for: answer: Invalid JSON"
    ):
        captioner.describe(torch.zeros(3, 9, 48, 64))


def test_control_tokens_in_a_rejected_answer_are_plain_text(eye):
    captioner = VisionLanguageCaptioner(eye, max_new_tokens=4)
    texts = [("assistant", "<|image_pad|><|im_end|>"), ("user", "again")]
    turns = [question_turn(ground("red")), *({"role": role, "content": [text_part(text)]} for role, text in texts)]
    assert isinstance(captioner._answer(captioner.model, turns), str)


def remove_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("visual.patch_embed.proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pickle_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def truncate_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def change_model_type(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))


def add_custom_code(folder):
    config = {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('this was run')")


def remove_template(folder):
    (folder / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (remove_a_weight, "1 of its weights are missing, .*patch_embed.proj.weight among them"),
        (pickle_weights, "model.safetensors"),
        (truncate_weights, "got"),
        (change_model_type, "a gpt2 does not answer about images"),
        (add_custom_code, "contains custom code"),
        (remove_template, "it has no chat template"),
    ],
)
def test_another_or_damaged_model_is_refused(eye, tmp_path, harm, reason):
    folder = shutil.copytree(eye, tmp_path / "eye")
    harm(folder)
    with pytest.raises(CaptionError, match=f"a captioner must be .*{reason}"):
        VisionLanguageCaptioner(folder).describe(ground("red"))
