"""Attention that keeps packed clips apart: a token sees its own clip's tokens and its own clip's words, nothing else.

Words enter as further keys and values beside the clip's own (as in Imagen, arXiv 2205.11487, section D.3.1), so one
softmax weighs picture against text. `_one_by_one` is the specification; every other backend is tested against it where
it can run.

All take q, k, v (N, K, E) for tokens and word_k, word_v (L, K, E) for words, clip after clip as `spans` says, and
return (N, K, E).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dit.packing import Spans


def attend(
    q: Tensor, k: Tensor, v: Tensor, word_k: Tensor, word_v: Tensor, spans: Spans, backend: str = "auto"
) -> Tensor:
    """Let each token gather from its own clip's tokens and words.

    `backend` is a key of BACKENDS, or "auto": varlen for half precision on CUDA, else grouped.
    Raises ValueError for an unknown backend.
    """
    if len(parts := spans.apart()) > 1:
        tokens, words = spans.sums
        pieces = zip(
            *(x.split(tokens) for x in (q, k, v)), *(x.split(words) for x in (word_k, word_v)), parts, strict=True
        )
        return torch.cat([attend(*own, spans=part, backend=backend) for *own, part in pieces])
    if backend == "auto":
        backend = "varlen" if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) else "grouped"
    if backend not in BACKENDS:
        raise ValueError(f"attention backend must be auto or one of {', '.join(BACKENDS)}; got {backend!r}")
    return BACKENDS[backend](q, k, v, word_k, word_v, spans)


def _one_by_one(q, k, v, word_k, word_v, spans: Spans) -> Tensor:
    """One scaled dot-product attention a clip: slow, and plainly right."""
    out = []
    clips = zip(
        *(x.split(spans.tokens) for x in (q, k, v)), *(x.split(spans.words) for x in (word_k, word_v)), strict=True
    )
    for q_, k_, v_, word_k_, word_v_ in clips:
        keys, values = torch.cat([k_, word_k_]), torch.cat([v_, word_v_])
        q_, keys, values = (rearrange(x, "n K E -> 1 K n E") for x in (q_, keys, values))
        out.append(rearrange(F.scaled_dot_product_attention(q_, keys, values), "1 K n E -> n K E"))
    return torch.cat(out)


def _grouped(q, k, v, word_k, word_v, spans: Spans) -> Tensor:
    """One batched attention a run of clips with equally many tokens; words are padded to the run's longest and
    masked.
    """
    out = []
    for clips, tokens, words in spans.groups():
        B, lengths = clips.stop - clips.start, spans.words[clips]
        pad, mask = _word_padding(lengths, spans.tokens[clips.start], q.device)
        keys, values = (
            torch.cat([rearrange(own[tokens], "(B n) K E -> B n K E", B=B), _padded(own_words[words], pad)], dim=1)
            for own, own_words in ((k, word_k), (v, word_v))
        )
        queries = rearrange(q[tokens], "(B n) K E -> B K n E", B=B)
        keys, values = (rearrange(x, "B n K E -> B K n E") for x in (keys, values))
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        out.append(rearrange(found, "B K n E -> (B n) K E"))
    return torch.cat(out) if len(out) > 1 else out[0]


def _padded(words: Tensor, pad: Tensor) -> Tensor:
    """Lay words (L, K, E) out as (B, longest, K, E). By index_select, whose gradient adds up in one order, unlike
    indexing's.
    """
    return rearrange(words.index_select(0, pad.flatten()), "(B L) K E -> B L K E", B=len(pad))


def _word_padding(lengths: tuple[int, ...], tokens: int, device) -> tuple[Tensor, Tensor | None]:
    """Return where to find each clip's words in the run's, (B, longest), and which keys are real, (B, 1, 1, tokens +
    longest).
    """
    starts = torch.tensor((0, *lengths[:-1]), device=device).cumsum(0)
    counts = torch.tensor(lengths, device=device)
    column = torch.arange(max(lengths), device=device)
    index = (starts[:, None] + column).clamp(max=sum(lengths) - 1)
    if min(lengths) == max(lengths):
        return index, None
    real = F.pad(column < counts[:, None], (tokens, 0), value=True)
    return index, real[:, None, None]


def _joined(k: Tensor, word_k: Tensor, spans: Spans) -> Tensor:
    """Return keys or values with each clip's words right behind its tokens, (N + L, K, E)."""
    owner = torch.cat([spans.clip_of_token(k.device), spans.clip_of_word(k.device)])
    return torch.cat([k, word_k])[owner.argsort(stable=True)]


def _flex(q, k, v, word_k, word_v, spans: Spans) -> Tensor:
    """torch's flex attention with a block mask; on CPU forward only."""
    from torch.nn.attention.flex_attention import create_block_mask

    owner = spans.clip_of_token(q.device)
    key_owner = torch.cat([owner, spans.clip_of_word(q.device)]).sort().values
    same_clip = lambda batch, head, query, key: owner[query] == key_owner[key]
    mask = create_block_mask(same_clip, None, None, len(owner), len(key_owner), device=q.device)
    heads_first = (rearrange(x, "n K E -> 1 K n E") for x in (q, _joined(k, word_k, spans), _joined(v, word_v, spans)))
    return rearrange(_flex_attention(q.is_cuda)(*heads_first, block_mask=mask), "1 K n E -> n K E")


@cache
def _flex_attention(compiled: bool) -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


def _varlen(q, k, v, word_k, word_v, spans: Spans) -> Tensor:
    """torch's variable-length flash attention; CUDA and half precision only."""
    from torch.nn.attention.varlen import varlen_attn

    keys = [tokens + words for tokens, words in zip(spans.tokens, spans.words, strict=True)]
    query_ends, key_ends = (
        F.pad(torch.tensor(lengths, device=q.device).cumsum(0), (1, 0)).int() for lengths in (spans.tokens, keys)
    )
    k, v = _joined(k, word_k, spans), _joined(v, word_v, spans)
    return varlen_attn(q, k, v, query_ends, key_ends, max(spans.tokens), max(keys))  # type: ignore[return-value]


def _xformers(q, k, v, word_k, word_v, spans: Spans) -> Tensor:
    """xformers' memory-efficient attention with a BlockDiagonalMask; CUDA only (the extra `gpu`)."""
    from xformers.ops import memory_efficient_attention  # type: ignore[import-not-found]
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask  # type: ignore[import-not-found]

    keys = [tokens + words for tokens, words in zip(spans.tokens, spans.words, strict=True)]
    mask = BlockDiagonalMask.from_seqlens(list(spans.tokens), keys, device=q.device)
    joined = (_joined(x, words, spans)[None] for x, words in ((k, word_k), (v, word_v)))
    return memory_efficient_attention(q[None], *joined, attn_bias=mask)[0]


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "one-by-one": _one_by_one,
    "grouped": _grouped,
    "flex": _flex,
    "varlen": _varlen,
    "xformers": _xformers,
}
