"""Attention over a pack: a token attends to the tokens and the text tokens of its own clip, never to another clip's.

Text tokens are additional keys and values, concatenated to the clip's own (as in Imagen, arXiv 2205.11487, section
D.3.1), so one softmax covers both. `_one_by_one` is the specification; every other backend is tested against it where
it can run.

All backends take q, k, v (N, K, E) of tokens and text_k, text_v (L, K, E) of text tokens, concatenated clip by clip as
`seq_lens` gives, and return (N, K, E).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dit.packing import SeqLens


def attend(
    q: Tensor, k: Tensor, v: Tensor, text_k: Tensor, text_v: Tensor, seq_lens: SeqLens, backend: str = "auto"
) -> Tensor:
    """Compute attention of each token over its own clip's tokens and text tokens.

    `backend` is a key of BACKENDS, or "auto": varlen for half precision on CUDA, else grouped.
    Raises ValueError for an unknown backend.
    """
    if len(parts := seq_lens.split_parts()) > 1:
        token_lens, text_lens = seq_lens.part_totals
        pieces = zip(
            *(x.split(token_lens) for x in (q, k, v)),
            *(x.split(text_lens) for x in (text_k, text_v)),
            parts,
            strict=True,
        )
        return torch.cat([attend(*tensors, seq_lens=part, backend=backend) for *tensors, part in pieces])
    if backend == "auto":
        backend = "varlen" if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) else "grouped"
    if backend not in BACKENDS:
        raise ValueError(f"attention backend must be auto or one of {', '.join(BACKENDS)}; got {backend!r}")
    return BACKENDS[backend](q, k, v, text_k, text_v, seq_lens)


def _one_by_one(q, k, v, text_k, text_v, seq_lens: SeqLens) -> Tensor:
    """Run one scaled dot-product attention per clip: slow, and plainly right."""
    out = []
    clips = zip(
        *(x.split(seq_lens.tokens) for x in (q, k, v)), *(x.split(seq_lens.text) for x in (text_k, text_v)), strict=True
    )
    for clip_q, clip_k, clip_v, clip_text_k, clip_text_v in clips:
        keys, values = torch.cat([clip_k, clip_text_k]), torch.cat([clip_v, clip_text_v])
        queries, keys, values = (rearrange(x, "n K E -> 1 K n E") for x in (clip_q, keys, values))
        out.append(rearrange(F.scaled_dot_product_attention(queries, keys, values), "1 K n E -> n K E"))
    return torch.cat(out)


def _grouped(q, k, v, text_k, text_v, seq_lens: SeqLens) -> Tensor:
    """Run one batched attention per run of clips with the same number of tokens.

    Text is padded to the longest of the run, and the padding is masked.
    """
    out = []
    for clips, tokens, text in seq_lens.equal_length_runs():
        B, text_lens = clips.stop - clips.start, seq_lens.text[clips]
        padded_index, mask = _text_padding(text_lens, seq_lens.tokens[clips.start], q.device)
        keys, values = (
            torch.cat([rearrange(x[tokens], "(B n) K E -> B n K E", B=B), _pad_text(x_text[text], padded_index)], dim=1)
            for x, x_text in ((k, text_k), (v, text_v))
        )
        queries = rearrange(q[tokens], "(B n) K E -> B K n E", B=B)
        keys, values = (rearrange(x, "B n K E -> B K n E") for x in (keys, values))
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        out.append(rearrange(attended, "B K n E -> (B n) K E"))
    return torch.cat(out) if len(out) > 1 else out[0]


def _pad_text(text: Tensor, padded_index: Tensor) -> Tensor:
    """Gather text (L, K, E) to a padded batch (B, longest, K, E).

    By index_select: its gradient is summed in a fixed order, unlike that of indexing.
    """
    return rearrange(text.index_select(0, padded_index.flatten()), "(B L) K E -> B L K E", B=len(padded_index))


def _text_padding(text_lens: tuple[int, ...], tokens: int, device) -> tuple[Tensor, Tensor | None]:
    """Return the index (B, longest) that pads a run's text, and the mask (B, 1, 1, tokens + longest) of valid keys.

    The mask is None if no padding is needed.
    """
    starts = torch.tensor((0, *text_lens[:-1]), device=device).cumsum(0)
    counts = torch.tensor(text_lens, device=device)
    column = torch.arange(max(text_lens), device=device)
    index = (starts[:, None] + column).clamp(max=sum(text_lens) - 1)
    if min(text_lens) == max(text_lens):
        return index, None
    valid = F.pad(column < counts[:, None], (tokens, 0), value=True)
    return index, valid[:, None, None]


def _interleave(x: Tensor, x_text: Tensor, seq_lens: SeqLens) -> Tensor:
    """Reorder keys or values so that each clip's text follows its tokens: (N + L, K, E)."""
    clip = torch.cat([seq_lens.clip_of_token(x.device), seq_lens.clip_of_text_token(x.device)])
    return torch.cat([x, x_text])[clip.argsort(stable=True)]


def _flex(q, k, v, text_k, text_v, seq_lens: SeqLens) -> Tensor:
    """Run torch's flex attention with a block mask; on CPU forward only."""
    from torch.nn.attention.flex_attention import create_block_mask

    query_clip = seq_lens.clip_of_token(q.device)
    key_clip = torch.cat([query_clip, seq_lens.clip_of_text_token(q.device)]).sort().values
    same_clip = lambda batch, head, query, key: query_clip[query] == key_clip[key]
    mask = create_block_mask(same_clip, None, None, len(query_clip), len(key_clip), device=q.device)
    keys, values = _interleave(k, text_k, seq_lens), _interleave(v, text_v, seq_lens)
    heads_first = (rearrange(x, "n K E -> 1 K n E") for x in (q, keys, values))
    return rearrange(_flex_attention(q.is_cuda)(*heads_first, block_mask=mask), "1 K n E -> n K E")


@cache
def _flex_attention(compiled: bool) -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


def _varlen(q, k, v, text_k, text_v, seq_lens: SeqLens) -> Tensor:
    """Run torch's variable-length flash attention; CUDA and half precision only."""
    from torch.nn.attention.varlen import varlen_attn

    key_lens = [tokens + text for tokens, text in zip(seq_lens.tokens, seq_lens.text, strict=True)]
    query_ends, key_ends = (
        F.pad(torch.tensor(lens, device=q.device).cumsum(0), (1, 0)).int() for lens in (seq_lens.tokens, key_lens)
    )
    keys, values = _interleave(k, text_k, seq_lens), _interleave(v, text_v, seq_lens)
    return varlen_attn(q, keys, values, query_ends, key_ends, max(seq_lens.tokens), max(key_lens))  # type: ignore[return-value]


def _xformers(q, k, v, text_k, text_v, seq_lens: SeqLens) -> Tensor:
    """Run xformers' memory-efficient attention with a BlockDiagonalMask; CUDA only (the extra `gpu`)."""
    from xformers.ops import memory_efficient_attention  # type: ignore[import-not-found]
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask  # type: ignore[import-not-found]

    key_lens = [tokens + text for tokens, text in zip(seq_lens.tokens, seq_lens.text, strict=True)]
    mask = BlockDiagonalMask.from_seqlens(list(seq_lens.tokens), key_lens, device=q.device)
    keys_values = (_interleave(x, x_text, seq_lens)[None] for x, x_text in ((k, text_k), (v, text_v)))
    return memory_efficient_attention(q[None], *keys_values, attn_bias=mask)[0]


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "one-by-one": _one_by_one,
    "grouped": _grouped,
    "flex": _flex,
    "varlen": _varlen,
    "xformers": _xformers,
}
