"""Every attention backend against the specification, where it can run; attention never crosses clips."""

import pytest
import torch
from torch import Tensor

from dit.attention import BACKENDS, attend
from dit.packing import SeqLens

SEQ_LENS = [
    SeqLens((12, 12, 12), (5, 5, 5)),
    SeqLens((12, 12, 7, 7, 12), (5, 1, 3, 8, 2)),
    SeqLens((9,), (1,)),
]


def draw(seq_lens: SeqLens, dtype=torch.float32, device="cpu") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draw q, k, v (N, 2, 16) and text_k, text_v (L, 2, 16)."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(seq_lens.tokens), 2, 16)] * 3 + [(sum(seq_lens.text), 2, 16)] * 2
    q, k, v, text_k, text_v = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return q, k, v, text_k, text_v


@pytest.mark.slow
@pytest.mark.parametrize("seq_lens", SEQ_LENS)
@pytest.mark.parametrize("backend", ["grouped", "flex"])
def test_a_fast_backend_equals_attention_clip_by_clip(seq_lens, backend):
    tensors = draw(seq_lens)
    expected = attend(*tensors, seq_lens, backend="one-by-one")
    assert torch.allclose(attend(*tensors, seq_lens, backend=backend), expected, atol=1e-5)


@pytest.mark.parametrize("seq_lens", SEQ_LENS)
def test_a_fast_backend_has_the_gradients_of_attention_clip_by_clip(seq_lens):
    grads = {}
    for backend in ("one-by-one", "grouped"):
        tensors = draw(seq_lens)
        for tensor in tensors:
            tensor.requires_grad_()
        attend(*tensors, seq_lens, backend=backend).square().sum().backward()
        grads[backend] = [tensor.grad for tensor in tensors]
    for a, b in zip(*grads.values(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("seq_lens", SEQ_LENS)
@pytest.mark.parametrize("backend", ["varlen", "xformers", "flex", "grouped"])
def test_a_fast_backend_equals_attention_clip_by_clip_on_cuda(seq_lens, backend):
    if backend == "xformers":
        pytest.importorskip("xformers")
    tensors = draw(seq_lens, torch.bfloat16, "cuda")
    q, k, v, text_k, text_v = (tensor.float() for tensor in tensors)
    expected = attend(q, k, v, text_k, text_v, seq_lens, backend="one-by-one")
    result = attend(*tensors, seq_lens, backend=backend).float()
    assert torch.allclose(result, expected, atol=3e-2)  # bf16 keeps 8 bits


@pytest.mark.parametrize("backend", ["one-by-one", "grouped", "flex"])
def test_attention_never_crosses_clips(backend):
    seq_lens = SEQ_LENS[1]
    q, k, v, text_k, text_v = draw(seq_lens)
    before = attend(q, k, v, text_k, text_v, seq_lens, backend=backend)
    others = torch.ones(sum(seq_lens.tokens), dtype=torch.bool)
    others[12:24] = False  # all but the second clip
    v[others], k[others] = 9.0, 9.0
    text_v[:5] = 9.0
    after = attend(q, k, v, text_k, text_v, seq_lens, backend=backend)
    assert torch.allclose(before[12:24], after[12:24], atol=1e-6)
    assert not torch.allclose(before[:12], after[:12], atol=1e-2)


def test_an_unknown_backend_is_refused_by_name():
    with pytest.raises(
        ValueError, match="must be auto or one of one-by-one, grouped, flex, varlen, xformers; got 'fast'"
    ):
        attend(*draw(SEQ_LENS[2]), SEQ_LENS[2], backend="fast")
    assert "grouped" in BACKENDS
