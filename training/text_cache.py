"""A cache of text embeddings in a prepared folder: `text_embeddings/ENCODER/NAME.safetensors`.

Training reads captions from it instead of running the text encoder. ENCODER is the hash of encoder and tokenizer. One
file holds one batch of captions: their embeddings in float32, and for each caption the digest of its text. A file is
complete or absent, so that no index is needed: a caption that is in no file is encoded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from captioning.text_encoder import TextEmbeddings, encode_prompts, load_text_encoder
from vae.files import atomic_write

TEXT_EMBEDDINGS = "text_embeddings"  # the cache within a prepared folder
OLD_TEXT_EMBEDDINGS = "words"  # its name in version 0.1; read, not written
BATCH = 256  # captions per file
# Fields of a tokenizer's files that do not change its tokens.
IGNORED_FIELDS = ("is_local", "local_files_only", "name_or_path", "truncation", "padding")


class CaptionBatch(NamedTuple):
    """Captions to encode, the text encoder to use (a folder or a name), and the prepared folder to write to."""

    texts: list[str]
    text_encoder: Path
    folder: Path


class CachedEmbedding(NamedTuple):
    """The place of one caption in a file: its row in `pooled` (B, D), and its `count` rows from `start` on in
    `token_embeddings` (L, D).
    """

    token_embeddings: Tensor
    pooled: Tensor
    row: int
    start: int
    count: int


def text_key(text: str) -> str:
    """Return the key of a caption in the cache: 32 hexadecimal digits of the SHA-256 of its text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def text_encoder_hash(tokenizer: Any, encoder: nn.Module) -> str:
    """Return 16 hexadecimal digits (SHA-256) of a text encoder with its tokenizer.

    Two with the same digits give the same embeddings.
    """
    config: Any = encoder.config
    settings = dict(config) if isinstance(config, dict) else config.to_dict()
    settings = {name: value for name, value in settings.items() if name[0] != "_" and name != "transformers_version"}
    digest = hashlib.sha256(json.dumps([type(encoder).__name__, settings], sort_keys=True, default=str).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix == ".json":
                stored = json.loads(path.read_text(encoding="utf-8"))
                for name in IGNORED_FIELDS:
                    stored.pop(name, None)
                digest.update(path.name.encode() + json.dumps(stored, sort_keys=True).encode())
            elif path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def cached_text_encoder(text_encoder: Path):
    """Return (tokenizer, encoder, their hash) for inference, loaded once per process."""
    tokenizer, encoder = load_text_encoder(text_encoder)
    encoder.requires_grad_(False).eval()
    return tokenizer, encoder, text_encoder_hash(tokenizer, encoder)


def pending_batches(folder: Path, text_encoder: Path, texts: Iterable[str]) -> list[CaptionBatch]:
    """Batch the captions that are not cached yet, sorted by length, so that little padding is encoded."""
    known = dict(cached_embeddings(folder, cached_text_encoder(text_encoder)[2]))
    missing = sorted({text for text in texts if text_key(text) not in known}, key=lambda text: (len(text), text))
    starts = range(0, len(missing), BATCH)
    return [CaptionBatch(missing[start : start + BATCH], text_encoder, folder) for start in starts]


@torch.no_grad()
def write_embeddings(batch: CaptionBatch) -> int:
    """Encode a batch of captions and write its file; return the file's size in bytes. Raises OSError on a full disk."""
    tokenizer, encoder, encoder_hash = cached_text_encoder(batch.text_encoder)
    embeddings = encode_prompts(batch.texts, tokenizer, encoder, truncate=True)
    keys = [text_key(text) for text in batch.texts]
    name = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
    path = batch.folder / TEXT_EMBEDDINGS / encoder_hash / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "keys": torch.frombuffer(bytearray.fromhex("".join(keys)), dtype=torch.uint8).view(len(keys), -1),
        "counts": torch.tensor(embeddings.token_counts),
        "features": embeddings.token_embeddings.float().cpu(),
        "pooled": embeddings.pooled.float().cpu(),
    }
    try:
        with atomic_write(path) as temporary:
            save_file(tensors, temporary)
    except SafetensorError as error:  # a full disk too
        raise OSError(f"{path} cannot be written: {error}; free disk space and run this again") from error
    return path.stat().st_size


def cached_embeddings(folder: Path, encoder_hash: str) -> Iterator[tuple[str, CachedEmbedding]]:
    """List the captions that a prepared folder has embeddings of, by key. The files are mapped, not read into memory.

    A damaged file is skipped. Files of version 0.1 are listed first, so that newer ones replace them.
    """
    for cache_name in (OLD_TEXT_EMBEDDINGS, TEXT_EMBEDDINGS):
        for path in sorted((folder / cache_name / encoder_hash).glob("[!.]*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    keys, counts, tokens, pooled = (
                        file.get_tensor(name) for name in ("keys", "counts", "features", "pooled")
                    )
            except SafetensorError:
                continue
            starts = counts.cumsum(0) - counts
            for row, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
                yield keys[row].numpy().tobytes().hex(), CachedEmbedding(tokens, pooled, row, start, count)


class TextCache:
    """A text encoder that looks captions up in prepared folders before it encodes them.

    Only prepared folders have a cache. Data sets of the procedural world have none: each of their clips has thirteen
    captions, whose embeddings would take gigabytes.
    """

    def __init__(self, tokenizer: Any, encoder: nn.Module, folders: Iterable[Path]):
        self.tokenizer, self.encoder = tokenizer, encoder
        self.known: dict[str, CachedEmbedding] = {}
        names = (TEXT_EMBEDDINGS, OLD_TEXT_EMBEDDINGS)
        prepared = [folder for folder in folders if any((folder / name).is_dir() for name in names)]
        encoder_hash = text_encoder_hash(tokenizer, encoder) if prepared else ""
        for folder in prepared:
            self.known.update(cached_embeddings(folder, encoder_hash))

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    @torch.no_grad()
    def encode(self, captions: list[str]) -> TextEmbeddings:
        """Return the text embeddings of captions, truncated to the encoder's context."""
        known = [self.known.get(text_key(caption)) for caption in captions]
        missing = [caption for caption, cached in zip(captions, known, strict=True) if cached is None]
        if not missing:
            return concatenate([self.load(cached) for cached in known if cached])
        encoded = encode_prompts(missing, self.tokenizer, self.encoder, truncate=True)
        if len(missing) == len(captions):
            return encoded
        fresh = iter(zip(encoded.token_embeddings.split(encoded.token_counts), encoded.pooled, strict=True))
        return concatenate([self.load(cached) if cached else next(fresh) for cached in known])

    def load(self, cached: CachedEmbedding) -> tuple[Tensor, Tensor]:
        """Return the token embeddings (L, D) and the pooled vector (D) of one caption, on the encoder's device."""
        tokens = cached.token_embeddings[cached.start : cached.start + cached.count]
        return tokens.to(self.device), cached.pooled[cached.row].to(self.device)


def concatenate(captions: list[tuple[Tensor, Tensor]]) -> TextEmbeddings:
    """Join captions, each given as token embeddings (L, D) and a pooled vector (D), into one TextEmbeddings."""
    tokens, pooled = zip(*captions, strict=True)
    return TextEmbeddings(torch.cat(tokens), torch.stack(pooled), tuple(map(len, tokens)))
