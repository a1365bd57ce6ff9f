"""Keep what a text encoder says of captions, so that training need not ask it: `words/ENCODER/NAME.safetensors`.

A file holds what was encoded at once, in float32 as the encoder gives it, and for each caption the digest of its text.
The folder's name is the hash of encoder and tokenizer. A file is there whole or not at all, so that the files are all
that must be known: what is in none of them is encoded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from captioning.text_encoder import TextEmbeddings, encode_prompts, load_text_encoder

WORDS = "words"  # in a prepared folder
TOGETHER = 256  # captions in a file
BESIDE = ("is_local", "local_files_only", "name_or_path", "truncation", "padding")  # of a tokenizer: change no words


class Portion(NamedTuple):
    """Captions to encode, by which text encoder, for which prepared folder."""

    texts: list[str]
    text: Path
    folder: Path


class Known(NamedTuple):
    """Where a caption is: the file's features (L, D) and pooled vectors (B, D), its number, its first word, and how
    many it has.
    """

    features: Tensor
    pooled: Tensor
    number: int
    start: int
    count: int


def key_of(text: str) -> str:
    """Return the digest of a caption's text: 32 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def words_hash(tokenizer, encoder: nn.Module) -> str:
    """Return 16 hexadecimal digits (SHA-256) that tell text encoders apart, tokenizers and all: those with the same
    digits give the same features.
    """
    config = encoder.config  # type: ignore[assignment]
    facts = dict(config) if isinstance(config, dict) else config.to_dict()  # type: ignore[operator, union-attr]
    facts = {name: value for name, value in facts.items() if name[0] != "_" and name != "transformers_version"}
    digest = hashlib.sha256(json.dumps([type(encoder).__name__, facts], sort_keys=True, default=str).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix == ".json":
                stored = json.loads(path.read_text(encoding="utf-8"))
                for name in BESIDE:
                    stored.pop(name, None)
                digest.update(path.name.encode() + json.dumps(stored, sort_keys=True).encode())
            elif path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def speaker_of(text: Path):
    """Return (tokenizer, encoder, their hash), loaded once in each process."""
    tokenizer, encoder = load_text_encoder(text)
    encoder.requires_grad_(False).eval()
    return tokenizer, encoder, words_hash(tokenizer, encoder)


def portions(folder: Path, text: Path, texts: Iterable[str]) -> list[Portion]:
    """Part those captions that are not there yet into what is encoded at once, of like length, as that is faster."""
    known = dict(stored(folder, speaker_of(text)[2]))
    todo = sorted({one for one in texts if key_of(one) not in known}, key=lambda one: (len(one), one))
    return [Portion(todo[start : start + TOGETHER], text, folder) for start in range(0, len(todo), TOGETHER)]


@torch.no_grad()
def write_words(portion: Portion) -> int:
    """Encode captions and write their file; returns how many bytes it has."""
    tokenizer, encoder, stamp = speaker_of(portion.text)
    words = encode_prompts(portion.texts, tokenizer, encoder, truncate=True)
    keys = [key_of(text) for text in portion.texts]
    path = portion.folder / WORDS / stamp / f"{hashlib.sha256(''.join(keys).encode()).hexdigest()[:16]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    found = {
        "keys": torch.frombuffer(bytearray.fromhex("".join(keys)), dtype=torch.uint8).view(len(keys), -1),
        "counts": torch.tensor(words.token_counts),
        "features": words.token_embeddings.float().cpu(),
        "pooled": words.pooled.float().cpu(),
    }
    try:
        save_file(found, temporary)
    except SafetensorError as error:  # of a full disk too
        raise OSError(f"{temporary} cannot be written: {error}; make room, and run this again") from error
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path.stat().st_size


def stored(folder: Path, stamp: str) -> Iterator[tuple[str, Known]]:
    """List the captions that a folder knows by an encoder's hash, not in memory; a damaged file knows none."""
    for path in sorted((folder / WORDS / stamp).glob("[!.]*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                keys, counts, features, pooled = (
                    file.get_tensor(name) for name in ("keys", "counts", "features", "pooled")
                )
        except SafetensorError:
            continue
        starts = counts.cumsum(0) - counts
        for number, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
            yield keys[number].numpy().tobytes().hex(), Known(features, pooled, number, start, count)


class Glossary:
    """What a text encoder says of captions: looked up where prepared folders have it, else encoded.

    A prepared folder has what `longtake prepare latents` wrote. Data sets of the world have nothing: they say thirteen
    things of every clip, which would be gigabytes.
    """

    def __init__(self, tokenizer, encoder: nn.Module, folders: Iterable[Path]):
        self.tokenizer, self.encoder = tokenizer, encoder
        self.known: dict[str, Known] = {}
        having = [folder for folder in folders if (folder / WORDS).is_dir()]
        stamp = words_hash(tokenizer, encoder) if having else ""
        for folder in having:
            self.known.update(stored(folder, stamp))

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    @torch.no_grad()
    def encode(self, captions: list[str]) -> TextEmbeddings:
        """Return the words of captions, cut where they are too long for the encoder."""
        known = [self.known.get(key_of(caption)) for caption in captions]
        fresh = [caption for caption, one in zip(captions, known, strict=True) if one is None]
        if not fresh:
            return joined([self.look_up(one) for one in known if one])
        words = encode_prompts(fresh, self.tokenizer, self.encoder, truncate=True)
        if len(fresh) == len(captions):
            return words
        told = iter(zip(words.token_embeddings.split(words.token_counts), words.pooled, strict=True))
        return joined([self.look_up(one) if one else next(told) for one in known])

    def look_up(self, known: Known) -> tuple[Tensor, Tensor]:
        """Return features (L, D) and the pooled vector (D) of one caption."""
        features = known.features[known.start : known.start + known.count]
        return features.to(self.device), known.pooled[known.number].to(self.device)


def joined(told: list[tuple[Tensor, Tensor]]) -> TextEmbeddings:
    """Put captions end to end, each given as features (L, D) and a pooled vector (D)."""
    features, pooled = zip(*told, strict=True)
    return TextEmbeddings(torch.cat(features), torch.stack(pooled), tuple(map(len, features)))
