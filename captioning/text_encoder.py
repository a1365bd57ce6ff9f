"""Text encoders: prompts to the embeddings that condition the diffusion transformer.

The default is open_clip's text tower (Radford et al. 2021, arXiv 2103.00020), trained against video clips by
`contrastive.py`. Any text encoder of transformers (T5, UMT5, CLIP, Qwen) can replace it by name. Both return
`TextEmbeddings`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from captioning.prompt_encoder import PromptEncoder
from vae.weights import CONFIG, WeightsError, load_strictly, read_json

START, END, PAD = "<start>", "<end>", "<pad>"
SUBFOLDERS = ("text_encoder", "tokenizer")
BATCH_PROMPTS = 12  # encoded at once


@dataclass(frozen=True)
class TextEmbeddings:
    """Encoded prompts.

    `token_embeddings` (L, D) holds the tokens of all prompts, concatenated without padding; `token_counts` the number
    of tokens of each prompt; `pooled` (B, D) one vector per prompt; `camera` (B, CAMERA_VALUES) the camera velocity
    that each prompt names, if the encoder reads one (`captioning/camera.py`).
    """

    token_embeddings: Tensor
    pooled: Tensor
    token_counts: tuple[int, ...]
    camera: Tensor | None = None

    def repeat(self, indices: list[int]) -> TextEmbeddings:
        """Select prompts by index; an index may occur several times."""
        parts = self.token_embeddings.split(self.token_counts)
        counts = tuple(self.token_counts[i] for i in indices)
        camera = None if self.camera is None else self.camera[indices]
        return TextEmbeddings(torch.cat([parts[i] for i in indices]), self.pooled[indices], counts, camera)


class TextTower(ModelMixin, ConfigMixin):
    """Encode tokens with open_clip's causal text transformer; return token embeddings and a pooled vector."""

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
        """Return token embeddings (B, L, D) and pooled vectors (B, D) of token ids (B, L); L is at most `context`.

        Computes the same as the forward of open_clip's tower, which needs ids padded to the whole context: five times
        the work for captions of usual length.
        """
        tower, length = self.tower, ids.shape[1]
        x = tower.token_embedding(ids) + tower.positional_embedding[:length]
        causal_mask = tower.build_causal_mask()[:length, :length].to(x)
        x = tower.ln_final(tower.transformer(x, attn_mask=causal_mask))
        end_positions = (ids == self.end_id).int().argmax(1)
        return x, x[torch.arange(len(ids)), end_positions] @ tower.text_projection


OWN_ENCODERS = {encoder.__name__: encoder for encoder in (TextTower, PromptEncoder)}


def train_tokenizer(texts, vocabulary: int, context: int):
    """Train a byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909) on captions; return a transformers tokenizer.

    Bytes make it cover every language. Text is lower-cased and normalized (NFKC), so spelling variants agree.
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


def tokenize(tokenizer, prompts: list[str], truncate: bool = False) -> tuple[Tensor, tuple[int, ...]]:
    """Return token ids (B, L), padded on the right to the longest prompt, and each prompt's token count (at least 1).

    Raises ValueError for a prompt over the token limit, unless `truncate` is set, as for training captions.
    """
    rows, limit = [], tokenizer.model_max_length
    for prompt in prompts:
        ids = tokenizer(prompt, truncation=False, verbose=False)["input_ids"] or [tokenizer.eos_token_id]
        if len(ids) > limit and truncate:
            ids = [*ids[: limit - 1], ids[-1]]
        if len(ids) > limit:
            raise ValueError(too_long(prompt, len(ids), limit))
        rows.append(torch.tensor(ids))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    return ids, tuple(len(row) for row in rows)


def too_long(prompt: str, tokens: int, limit: int) -> str:
    """Say by how many words, or characters of a text without spaces, a prompt exceeds a token limit."""
    words, unit = len(prompt.split()), "words"
    if len(prompt) > 12 * words:  # as in Chinese; an English word has five letters
        words, unit = len("".join(prompt.split())), "characters"
    most = max(1, words * limit // tokens)
    return (
        f"a prompt must be at most about {most} {unit} for this model; got {words}, so leave out about "
        f"{max(1, words - most)} (its text encoder reads {limit} tokens, and this prompt has {tokens})"
    )


def shorten_to_limit(tokenizer, text: str) -> str:
    """Drop whole sentences from the end of a text until it fits the token limit; return "" if none fits."""
    parts = re.findall(r".+?(?:[.!?](?=\s|$)|[。！？]|$)\s*", text, flags=re.DOTALL)
    for count in range(len(parts), 0, -1):
        kept = "".join(parts[:count]).strip()
        if len(tokenizer(kept, truncation=False, verbose=False)["input_ids"]) <= tokenizer.model_max_length:
            return kept
    return ""


def capitalize_sentences(text: str) -> str:
    """Capitalize the first letter of each sentence; the tokenizer is lower case."""
    return re.sub(r"(?:^|(?<=[.!?] ))[a-z]", lambda first: first[0].upper(), text.strip())


def encode_prompts(prompts: list[str], tokenizer, encoder: nn.Module, truncate: bool = False) -> TextEmbeddings:
    """Encode prompts with the trained tower or any transformers text encoder.

    Encodes batches of BATCH_PROMPTS prompts of similar length, because a batch is padded to its longest prompt.
    Raises ValueError for a prompt over the token limit, unless `truncate` is set.
    """
    ids, counts = tokenize(tokenizer, prompts, truncate)
    shortest_first = sorted(range(len(counts)), key=counts.__getitem__)
    embeddings, pooled = {}, {}
    for start in range(0, len(counts), BATCH_PROMPTS):
        batch = shortest_first[start : start + BATCH_PROMPTS]
        lengths = [counts[i] for i in batch]
        for i, length, tokens, vector in zip(batch, lengths, *_encode(ids[batch], lengths, encoder), strict=True):
            embeddings[i], pooled[i] = tokens[:length], vector
    order = range(len(counts))
    stacked = torch.stack([pooled[i] for i in order])
    camera = encoder.camera_of(stacked) if isinstance(encoder, PromptEncoder) else None
    return TextEmbeddings(torch.cat([embeddings[i] for i in order]), stacked, counts, camera)


def _encode(ids: Tensor, counts: list[int], encoder: nn.Module) -> tuple[Tensor, Tensor]:
    """Return token embeddings (B, L, D) and pooled vectors (B, D) of the first `counts` ids of each row."""
    device = next(encoder.parameters()).device
    ids = ids[:, : max(counts)].to(device)
    if isinstance(encoder, TextTower):
        return encoder(ids)
    mask = torch.arange(ids.shape[1], device=device) < torch.tensor(counts, device=device)[:, None]
    if isinstance(encoder, PromptEncoder):
        return encoder(ids, mask)
    hidden = encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return hidden, (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def embedding_dim(encoder: nn.Module) -> int:
    """Return D, the size of a token embedding."""
    if isinstance(encoder, TextTower | PromptEncoder):
        return encoder.width
    config = encoder.config.to_dict()  # type: ignore[operator, union-attr]
    return config.get("hidden_size") or config["d_model"]


def load_tokenizer(folder: Path):
    """Load a tokenizer that `train_tokenizer` made. Raises WeightsError if it is missing or damaged."""
    from transformers import PreTrainedTokenizerFast

    read_json(folder / "tokenizer.json")
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises a bare Exception
        raise WeightsError(f"{folder} is damaged: {error}; fetch or train the model anew") from error


def load_transformers_tokenizer(name: str | Path):
    """Load a tokenizer of transformers by name or folder, never its own code. Raises ValueError if there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"a tokenizer must be one of transformers; got {str(name)!r} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """Say on one line why transformers cannot load a model or tokenizer."""
    if "trust_remote_code" in str(error):
        return "it has Python code of its own, which is never run"
    return " ".join(str(error).split())


def load_text_encoder(name: str | Path):
    """Load (tokenizer, encoder) from a Longtake model folder, or from transformers by name or folder.

    Of an encoder-decoder model (T5, UMT5), only the encoder is loaded. Raises ValueError if neither is found, or if it
    needs Python code of its own, which is never run.
    """
    import transformers

    folder, tokenizer_name = Path(name), name
    if (folder / SUBFOLDERS[0]).is_dir():
        class_name = read_json(folder / SUBFOLDERS[0] / CONFIG).get("_class_name")
        if class_name in OWN_ENCODERS:
            encoder = load_strictly(OWN_ENCODERS[class_name], folder / SUBFOLDERS[0])
            return load_tokenizer(folder / SUBFOLDERS[1]), encoder
        name, tokenizer_name = folder / SUBFOLDERS[0], folder / SUBFOLDERS[1]
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        tokenizer = load_transformers_tokenizer(tokenizer_name)
        class_names = {
            "t5": "T5EncoderModel",
            "umt5": "UMT5EncoderModel",
            "clip": "CLIPTextModel",
            "clip_text_model": "CLIPTextModel",
        }
        encoder_class = getattr(transformers, class_names.get(config.model_type, "AutoModel"))
        encoder = encoder_class.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
        return tokenizer, encoder.eval()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"a text encoder must be a folder with {' and '.join(SUBFOLDERS)}, or a transformers model; "
            f"got {str(name)!r} ({_reason(error)})"
        ) from error
