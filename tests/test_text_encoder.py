"""Text encoders: the tower trained here, those of transformers, and the contrastive loss."""

import pytest
import torch
import transformers

from captioning.contrastive import VideoTower, contrastive_loss
from captioning.text_encoder import (
    SUBFOLDERS,
    TextTower,
    capitalize_sentences,
    embedding_dim,
    encode_prompts,
    load_text_encoder,
    tokenize,
    train_tokenizer,
)

TEXTS = ["a red ball bounces", "the blue cube spins while the camera orbits left", "一个红色的球在弹跳"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 320, 64)


@pytest.fixture(scope="module")
def tower(tokenizer):
    torch.manual_seed(0)
    return TextTower(len(tokenizer), 64, 32, 2, 2, tokenizer.eos_token_id, tokenizer.pad_token_id).eval()


def test_any_text_survives_tokenization(tokenizer):
    for text in (*TEXTS, "zebra é 龍 🎈"):
        ids, (count,) = tokenize(tokenizer, [text])
        assert tokenizer.decode(ids[0, 1 : count - 1].tolist()).strip() == text


def test_sentences_are_capitalized():
    assert capitalize_sentences(" a red ball. it is 3.5 cm wide! the end") == "A red ball. It is 3.5 cm wide! The end"


def test_case_and_fullwidth_letters_are_normalized(tokenizer):
    assert tokenizer("A Red ｂａｌｌ")["input_ids"] == tokenizer("a red ball")["input_ids"]


def test_a_prompt_over_the_token_limit_is_refused_or_truncated(tokenizer):
    with pytest.raises(ValueError, match="its text encoder reads 64 tokens"):
        tokenize(tokenizer, ["x" * 100])
    ids, counts = tokenize(tokenizer, ["x" * 100], truncate=True)
    assert counts == (64,) and ids[0, -1] == tokenizer.eos_token_id


def test_the_tower_computes_what_open_clip_computes(tokenizer, tower):
    ids, counts = tokenize(tokenizer, TEXTS)
    padded = torch.nn.functional.pad(ids, (0, 64 - ids.shape[1]), value=tokenizer.pad_token_id)
    with torch.no_grad():
        pooled, embeddings = tower.tower(padded)
        our_embeddings, our_pooled = tower(ids)
    assert torch.allclose(our_pooled, pooled, atol=1e-5)
    for n, count in enumerate(counts):
        assert torch.allclose(our_embeddings[n, :count], embeddings[n, :count], atol=1e-5)


def test_a_prompt_is_encoded_the_same_alone_or_in_company(tokenizer, tower):
    with torch.no_grad():
        together, alone = encode_prompts(TEXTS, tokenizer, tower), encode_prompts(TEXTS[:1], tokenizer, tower)
    assert torch.allclose(together.token_embeddings[: together.token_counts[0]], alone.token_embeddings, atol=1e-5)
    assert torch.allclose(together.pooled[:1], alone.pooled, atol=1e-5)


def test_the_empty_prompt_has_tokens(tokenizer, tower):
    assert encode_prompts([""], tokenizer, tower).token_counts[0] >= 1


def test_repeat_selects_prompts_by_index(tokenizer, tower):
    with torch.no_grad():
        embeddings = encode_prompts(TEXTS, tokenizer, tower)
    chosen = embeddings.repeat([2, 0, 2])
    assert chosen.token_counts == (embeddings.token_counts[2], embeddings.token_counts[0], embeddings.token_counts[2])
    assert torch.equal(chosen.pooled, embeddings.pooled[[2, 0, 2]])
    assert torch.equal(
        chosen.token_embeddings[: embeddings.token_counts[2]],
        embeddings.token_embeddings[-embeddings.token_counts[2] :],
    )


SMALL = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
ENCODERS = {
    "t5": lambda: transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=400, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2)
    ),
    "umt5": lambda: transformers.UMT5EncoderModel(
        transformers.UMT5Config(vocab_size=400, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2)
    ),
    "clip": lambda: transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**SMALL, max_position_embeddings=64, bos_token_id=2, eos_token_id=1, pad_token_id=0)
    ),
    "qwen": lambda: transformers.Qwen3Model(transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16)),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_of_transformers_can_replace_the_tower(name, tokenizer, tmp_path):
    torch.manual_seed(0)
    ENCODERS[name]().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    their_tokenizer, encoder = load_text_encoder(tmp_path)
    with torch.no_grad():
        embeddings = encode_prompts(TEXTS, their_tokenizer, encoder.eval())
        alone = encode_prompts(TEXTS[:1], their_tokenizer, encoder)
    assert (
        embeddings.token_embeddings.shape
        == (sum(embeddings.token_counts), 32)
        == (sum(embeddings.token_counts), embedding_dim(encoder))
    )
    assert embeddings.pooled.shape == (3, 32)
    assert torch.allclose(embeddings.token_embeddings[: embeddings.token_counts[0]], alone.token_embeddings, atol=1e-4)
    assert not torch.allclose(embeddings.pooled[0], embeddings.pooled[1], atol=1e-3)


def test_a_tower_is_loaded_from_a_model_folder(tokenizer, tower, tmp_path):
    tower.save_pretrained(tmp_path / SUBFOLDERS[0])
    tokenizer.save_pretrained(tmp_path / SUBFOLDERS[1])
    their_tokenizer, loaded = load_text_encoder(tmp_path)
    with torch.no_grad():
        assert torch.equal(
            encode_prompts(TEXTS, their_tokenizer, loaded).pooled, encode_prompts(TEXTS, tokenizer, tower).pooled
        )


def test_what_is_no_text_encoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a text encoder must be a folder with text_encoder and tokenizer"):
        load_text_encoder(tmp_path)


def test_the_contrastive_loss_is_lowest_for_matching_pairs():
    vectors, scale = torch.eye(4), torch.tensor(3.0)
    right, wrong = contrastive_loss(vectors, vectors, scale), contrastive_loss(vectors, vectors.roll(1, 0), scale)
    assert right < 0.01 < 5 < wrong


def test_a_video_tower_is_sensitive_to_frame_order():
    torch.manual_seed(0)
    tower = VideoTower(width=64, heads=2, layers=1, output_width=8).eval()
    clip = torch.rand(1, 3, 9, 32, 32)
    with torch.no_grad():
        forward, tokens = tower(clip)
        assert tokens.shape == (1, 3 * 2 * 2, 64) and forward.shape == (1, 8)
        assert not torch.allclose(forward, tower(clip.flip(2))[0], atol=1e-3)
