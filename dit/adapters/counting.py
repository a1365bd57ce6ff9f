"""FLOPs and peak memory of a model on the meta device, where nothing is computed."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental import _config as fx_config
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import flop_registry


class FusedAttention(TorchFunctionMode):
    """Count attention by its formula, without the matrix of scores, which no fused kernel keeps."""

    def __init__(self, counter: OperationCounter):
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        query, key, value = (named[name] for name in ("query", "key", "value"))
        *batch, queries, width = query.shape
        self.counter.flops += 2 * math.prod(batch) * queries * key.shape[-2] * (width + value.shape[-1])
        return query.new_empty(*batch, queries, value.shape[-1])


class OperationCounter(TorchDispatchMode):
    """Add up FLOPs by the formulas of torch's FlopCounterMode, and the bytes of all tensors that are alive."""

    def __init__(self):
        super().__init__()
        self.flops = self.alive = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if formula := flop_registry.get(func._overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=found)
        given = {value.untyped_storage()._cdata for value in (*args, *kwargs.values()) if torch.is_tensor(value)}
        for value in found if isinstance(found, (tuple, list)) else (found,):
            if torch.is_tensor(value):
                self._add(value.untyped_storage(), given)
        return found

    def _add(self, storage: Any, given: set[int]) -> None:
        key = storage._cdata
        if key not in given and key not in self.known:
            self.known.add(key)
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._drop, key, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


def count_operations(function: Callable[[], Any], *models: nn.Module) -> tuple[int, int]:
    """Return the FLOPs of a function on meta tensors, and the most bytes that it holds at a time.

    Of the equal blocks in a list of `models`, one is run and the others are counted like it.
    """
    counter, autocast = OperationCounter(), torch.autocast
    torch.autocast = lambda *args, **kwargs: nullcontext()  # type: ignore  # which the meta device does not have
    try:
        _count(counter, function, models)
    finally:
        torch.autocast = autocast  # type: ignore
    return counter.flops, counter.peak


def _count(counter: OperationCounter, function: Callable[[], Any], models: tuple[nn.Module, ...]) -> None:
    all_nonzero = fx_config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]  # of a prompt's mask, say: the most tokens
    with all_nonzero, torch.no_grad(), FusedAttention(counter), counter, _blocks_run_once(counter, models):
        function()


@contextmanager
def _blocks_run_once(counter: OperationCounter, models: tuple[nn.Module, ...]) -> Iterator[None]:
    """Let each block of a list return what an equal one, with inputs of equal shape, returned before it."""
    blocks = [
        block for model in models for part in model.modules() if isinstance(part, nn.ModuleList) for block in part
    ]
    found: dict[tuple, tuple[Any, int]] = {}
    for block in blocks:
        shapes = tuple(value.shape for value in block.parameters())
        block.forward = partial(_run_once, counter, found, (type(block), shapes), block.forward)
    try:
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _run_once(counter: OperationCounter, found: dict, kind: tuple, forward: Callable, *args, **kwargs) -> Any:
    flat, _ = tree_flatten((args, kwargs))
    key = (*kind, *(value.shape for value in flat if torch.is_tensor(value)))
    if key not in found:
        before = counter.flops
        found[key] = forward(*args, **kwargs), counter.flops - before
        return found[key][0]
    like, flops = found[key]
    counter.flops += flops
    return tree_map(lambda value: torch.empty_like(value) if torch.is_tensor(value) else value, like)
