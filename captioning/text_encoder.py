"""Words to vectors: the tower that tells the diffusion transformer what to dream.

The default is open_clip's text tower (Radford et al. 2021, arXiv 2103.00020), trained here against clips
(`contrast.py`). Any encoder of transformers (T5, UMT5, CLIP, Qwen) can take its place by name; what both give is
`Words`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from vae.weights import CONFIG, WeightsError, load_strictly, read_json

START, END, PAD = "<start>", "<end>", "<pad>"
FILES = ("text_encoder", "tokenizer")
GROUP = 12  # prompts encoded at once


@dataclass(frozen=True)
class Words:
    """Encoded prompts, end to end: features (L, D), one pooled vector a prompt (B, D), and how many words each prompt
    has.
    """

    features: Tensor
    pooled: Tensor
    counts: tuple[int, ...]

    def repeat(self, indices: list[int]) -> Words:
        """Choose prompts by number, each as often as asked."""
        parts = self.features.split(self.counts)
        return Words(
            torch.cat([parts[i] for i in indices]), self.pooled[indices], tuple(self.counts[i] for i in indices)
        )


class TextTower(ModelMixin, ConfigMixin):
    """open_clip's causal text transformer with token features as its output, and the pooled vector beside them."""

    @register_to_config
    def __init__(
        self,
        vocabulary: int = 2048,
        context: int = 128,
        width: int = 128,
        heads: int = 4,
        layers: int = 4,
        end_id: int = 1,
        pad_id: int = 0,
    ):
        super().__init__()
        from open_clip.transformer import TextTransformer

        self.width, self.end_id = width, end_id
        self.tower = TextTransformer(
            context_length=context,
            vocab_size=vocabulary,
            width=width,
            heads=heads,
            layers=layers,
            output_dim=width,
            pad_id=pad_id,
            eos_id=end_id,
            pool_type="eos",
            output_tokens=True,
        )

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return token features (B, L, D) and pooled vectors (B, D) of token ids (B, L), L at most the context.

        The same as the tower's own forward, which wants ids padded to the whole context: five times the work for our
        captions.
        """
        tower, length = self.tower, ids.shape[1]
        x = tower.token_embedding(ids) + tower.positional_embedding[:length]
        causal = tower.build_causal_mask()[:length, :length].to(x)
        features = tower.ln_final(tower.transformer(x, attn_mask=causal))
        ends = (ids == self.end_id).int().argmax(1)
        return features, features[torch.arange(len(ids)), ends] @ tower.text_projection


def train_tokenizer(texts, vocabulary: int, context: int):
    """Learn a byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909) from captions; return a transformers tokenizer.

    Byte-level, so that any prompt in any language can be written in it; lower case and NFKC, so that spelling variants
    agree.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [PAD, END, START]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=specials, initial_alphabet=alphabet)
    )
    ends = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, bos_token=START, model_max_length=context
    )


def tokenise(tokenizer, prompts: list[str], cut: bool = False) -> tuple[Tensor, tuple[int, ...]]:
    """Return token ids (B, longest), padded on the right, and each prompt's count, at least one.

    Raises ValueError for a prompt longer than the tokenizer's limit, unless it may be `cut`, as captions in training
    may.
    """
    rows, limit = [], tokenizer.model_max_length
    for prompt in prompts:
        ids = tokenizer(prompt, truncation=False, verbose=False)["input_ids"] or [tokenizer.eos_token_id]
        if len(ids) > limit and cut:
            ids = [*ids[: limit - 1], ids[-1]]
        if len(ids) > limit:
            raise ValueError(
                f"a prompt must be at most {limit} tokens for this text encoder; "
                f"got {len(ids)}, so shorten it by about {100 * (len(ids) - limit) // len(ids) + 1} %"
            )
        rows.append(torch.tensor(ids))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    return ids, tuple(len(row) for row in rows)


def within_limit(tokenizer, text: str) -> str:
    """Return as many whole sentences of a text, from its beginning, as the tokenizer's limit allows."""
    parts = re.findall(r".+?(?:[.!?](?=\s|$)|[。！？]|$)\s*", text, flags=re.DOTALL)
    for many in range(len(parts), 0, -1):
        kept = "".join(parts[:many]).strip()
        if len(tokenizer(kept, truncation=False, verbose=False)["input_ids"]) <= tokenizer.model_max_length:
            return kept
    return ""


def sentences(text: str) -> str:
    """Begin every sentence with a capital: our tokens have none."""
    return re.sub(r"(?:^|(?<=[.!?] ))[a-z]", lambda first: first[0].upper(), text.strip())


def encode(prompts: list[str], tokenizer, encoder: nn.Module, cut: bool = False) -> Words:
    """Turn prompts into `Words`, with the trained tower or with any transformers text encoder; GROUP prompts of like
    length at a time, since a group is as long as its longest.

    Raises ValueError for a prompt longer than the encoder's limit, unless it may be `cut`.
    """
    ids, counts = tokenise(tokenizer, prompts, cut)
    shortest_first = sorted(range(len(counts)), key=counts.__getitem__)
    features, pooled = {}, {}
    for start in range(0, len(counts), GROUP):
        group = shortest_first[start : start + GROUP]
        lengths = [counts[i] for i in group]
        for i, length, words, vector in zip(group, lengths, *_encode(ids[group], lengths, encoder), strict=True):
            features[i], pooled[i] = words[:length], vector
    numbers = range(len(counts))
    return Words(torch.cat([features[i] for i in numbers]), torch.stack([pooled[i] for i in numbers]), counts)


def _encode(ids: Tensor, counts: list[int], encoder: nn.Module) -> tuple[Tensor, Tensor]:
    """Return features (B, longest, D) and pooled vectors (B, D) of the first `counts` ids of each row."""
    device = next(encoder.parameters()).device
    ids = ids[:, : max(counts)].to(device)
    if isinstance(encoder, TextTower):
        return encoder(ids)
    real = torch.arange(ids.shape[1], device=device) < torch.tensor(counts, device=device)[:, None]
    features = encoder(input_ids=ids, attention_mask=real.long()).last_hidden_state
    return features, (features * real[..., None]).sum(1) / real.sum(1, keepdim=True)


def width_of(encoder: nn.Module) -> int:
    """Return D, how many values a word's feature has."""
    if isinstance(encoder, TextTower):
        return encoder.width
    config = encoder.config.to_dict()  # type: ignore[operator, union-attr]
    return config.get("hidden_size") or config["d_model"]


def load_tokenizer(folder: Path):
    """Load a tokenizer of ours. Raises WeightsError where it is absent or damaged."""
    from transformers import PreTrainedTokenizerFast

    read_json(folder / "tokenizer.json")
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the parser's own kind has no other name
        raise WeightsError(f"{folder} is damaged: {error}; fetch or train the model anew") from error


def load_text_encoder(name: str | Path):
    """Load (tokenizer, encoder) from a model folder of ours, or from transformers by name or folder.

    Encoder-decoder models (T5, UMT5) give their encoder. Raises ValueError where neither is found.
    """
    import transformers

    folder, words = Path(name), name
    if (folder / FILES[0]).is_dir():
        if read_json(folder / FILES[0] / CONFIG).get("_class_name") == TextTower.__name__:
            encoder = load_strictly(TextTower, folder / FILES[0])
            return load_tokenizer(folder / FILES[1]), encoder
        name, words = folder / FILES[0], folder / FILES[1]
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(words)
        kinds = {
            "t5": "T5EncoderModel",
            "umt5": "UMT5EncoderModel",
            "clip": "CLIPTextModel",
            "clip_text_model": "CLIPTextModel",
        }
        kind = getattr(transformers, kinds.get(config.model_type, "AutoModel"))
        return tokenizer, kind.from_pretrained(name, use_safetensors=True, dtype=torch.float32).eval()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"a text encoder must be a folder with {' and '.join(FILES)}, or a transformers model; "
            f"got {str(name)!r} ({error})"
        ) from error
