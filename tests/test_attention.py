"""Every backend against the specification, where it can run; and clips kept apart."""

import pytest
import torch

from dit.attention import BACKENDS, attend
from dit.packing import Spans

SPANS = [
    Spans((12, 12, 12), (5, 5, 5)),
    Spans((12, 12, 7, 7, 12), (5, 1, 3, 8, 2)),
    Spans((9,), (1,)),
]


def draw(spans: Spans, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(spans.tokens), 2, 16)] * 3 + [(sum(spans.words), 2, 16)] * 2
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


@pytest.mark.parametrize("spans", SPANS)
@pytest.mark.parametrize("backend", ["grouped", "flex"])
def test_a_fast_backend_equals_one_attention_a_clip(spans, backend):
    tensors = draw(spans)
    wanted = attend(*tensors, spans, backend="one-by-one")
    assert torch.allclose(attend(*tensors, spans, backend=backend), wanted, atol=1e-5)


@pytest.mark.parametrize("spans", SPANS)
def test_a_fast_backend_has_the_gradients_of_one_attention_a_clip(spans):
    found = {}
    for backend in ("one-by-one", "grouped"):
        tensors = [tensor.requires_grad_() for tensor in draw(spans)]
        attend(*tensors, spans, backend=backend).square().sum().backward()
        found[backend] = [tensor.grad for tensor in tensors]
    for a, b in zip(*found.values(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("spans", SPANS)
@pytest.mark.parametrize("backend", ["varlen", "xformers", "flex", "grouped"])
def test_a_fast_backend_equals_one_attention_a_clip_on_cuda(spans, backend):
    if backend == "xformers":
        pytest.importorskip("xformers")
    tensors = draw(spans, torch.bfloat16, "cuda")
    wanted = attend(*(tensor.float() for tensor in tensors), spans, backend="one-by-one")
    found = attend(*tensors, spans, backend=backend).float()
    assert torch.allclose(found, wanted, atol=3e-2)  # bf16 keeps 8 bits


@pytest.mark.parametrize("backend", ["one-by-one", "grouped", "flex"])
def test_attention_never_crosses_clips(backend):
    spans = SPANS[1]
    q, k, v, word_k, word_v = draw(spans)
    before = attend(q, k, v, word_k, word_v, spans, backend=backend)
    others = torch.ones(sum(spans.tokens), dtype=torch.bool)
    others[12:24] = False  # all but the second clip
    v[others], k[others] = 9.0, 9.0
    word_v[:5] = 9.0
    after = attend(q, k, v, word_k, word_v, spans, backend=backend)
    assert torch.allclose(before[12:24], after[12:24], atol=1e-6)
    assert not torch.allclose(before[:12], after[:12], atol=1e-2)


def test_an_unknown_backend_is_refused_by_name():
    with pytest.raises(
        ValueError, match="must be auto or one of one-by-one, grouped, flex, varlen, xformers; got 'fast'"
    ):
        attend(*draw(SPANS[2]), SPANS[2], backend="fast")
    assert "grouped" in BACKENDS
