"""The transformer, its packs, its cost."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dit.flops import forward_flops, parameters
from dit.model import SIDES, DiT, DiTConfig, mix, neighbours
from dit.packing import pack, patchify, unpack, unpatchify


def clips(shapes, channels=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(channels, *shape, generator=generator) for shape in shapes]


def inputs(shapes, counts, width=24):
    generator = torch.Generator().manual_seed(2)
    latents = clips(shapes)
    levels = [torch.full(shape, 0.1 + 0.2 * n) for n, shape in enumerate(shapes)]
    levels[0][0] = 0
    words = torch.randn(sum(counts), width, generator=generator)
    return latents, levels, words, torch.randn(len(shapes), width, generator=generator)


def test_patches_lie_back_where_they_were_cut():
    (clip,) = clips([(3, 4, 6)])
    tokens = patchify(clip, (1, 2, 2))
    assert tokens.shape == (3 * 2 * 3, 4 * 4)
    assert torch.equal(unpatchify(tokens, (3, 4, 6), (1, 2, 2)), clip)


def test_a_pack_unpacks_to_its_clips():
    latents = clips([(3, 4, 6), (1, 8, 8)])
    batch = pack(latents, [torch.ones(clip.shape[1:]) for clip in latents], [8.0, 8.0], (1, 2, 2))
    assert batch.lengths == (18, 16)
    for a, b in zip(unpack(batch.tokens, batch.shapes, batch.patch), latents, strict=True):
        assert torch.equal(a, b)


def test_a_patch_that_is_partly_dreamed_counts_as_dreamed():
    level = torch.zeros(1, 2, 4)
    level[0, 0, 3] = 0.5
    batch = pack(clips([(1, 2, 4)]), [level], [8.0], (1, 2, 2))
    assert batch.level.tolist() == [0.0, 0.5]


def test_a_patch_must_divide_the_clip():
    with pytest.raises(ValueError, match=r"multiples of the patch \(1, 2, 2\); got \(1, 3, 4\)"):
        patchify(torch.zeros(4, 1, 3, 4), (1, 2, 2))


def test_a_clip_is_denoised_the_same_alone_or_in_company(tiny_dit):
    shapes, counts = [(3, 4, 6), (2, 4, 4), (3, 4, 6), (1, 8, 8)], (5, 2, 3, 7)
    latents, levels, words, pooled = inputs(shapes, counts)
    fps = [8.0, 8.0, 4.0, 8.0]
    with torch.no_grad():
        batch = pack(latents, levels, fps, (1, 2, 2))
        together = unpack(tiny_dit(batch, words, pooled, counts), batch.shapes, batch.patch)
        for n, (own, start) in enumerate(zip(words.split(counts), range(4), strict=True)):
            alone = pack(latents[n : n + 1], levels[n : n + 1], fps[n : n + 1], (1, 2, 2))
            (found,) = unpack(
                tiny_dit(alone, own, pooled[start : start + 1], counts[n : n + 1]), alone.shapes, alone.patch
            )
            assert torch.allclose(found, together[n], atol=1e-5)


def test_parts_of_a_pack_are_the_same_to_the_last_bit_as_alone(tiny_dit):
    shapes, counts, parts = (
        [(3, 4, 6), (3, 4, 6), (2, 4, 4), (3, 4, 6), (1, 8, 8), (1, 8, 8)],
        (5, 2, 3, 7, 4, 9),
        (2, 1, 3),
    )
    latents, levels, words, pooled = inputs(shapes, counts)
    with torch.no_grad():
        batch = pack(latents, levels, [8.0] * 6, (1, 2, 2), parts)
        together = tiny_dit(batch, words, pooled, counts).split(
            [sum(batch.lengths[a:b]) for a, b in ((0, 2), (2, 3), (3, 6))]
        )
        for (a, b), found in zip(((0, 2), (2, 3), (3, 6)), together, strict=True):
            alone, (first, last) = (
                pack(latents[a:b], levels[a:b], [8.0] * (b - a), (1, 2, 2)),
                (sum(counts[:a]), sum(counts[:b])),
            )
            assert torch.equal(tiny_dit(alone, words[first:last], pooled[a:b], counts[a:b]), found)


def test_every_input_matters(tiny_dit):
    latents, levels, words, pooled = inputs([(3, 4, 6)], (5,))

    def velocity(latents=latents, levels=levels, words=words, pooled=pooled, fps=8.0):
        with torch.no_grad():
            return tiny_dit(pack(latents, levels, [fps], (1, 2, 2)), words, pooled, (5,))

    plain = velocity()
    changes = {
        "latents": velocity(latents=[latents[0] + 1]),
        "levels": velocity(levels=[levels[0] * 0.5]),
        "words": velocity(words=-words),
        "pooled": velocity(pooled=-pooled),
        "fps": velocity(fps=16.0),
    }
    for name, changed in changes.items():
        assert (changed - plain).abs().max() > 1e-3, name


def test_the_model_knows_where_a_token_lies(tiny_dit):
    latents, levels, words, pooled = inputs([(3, 4, 6)], (5,))
    levels = [torch.full((3, 4, 6), 0.5)]

    def velocity(clip):
        with torch.no_grad():
            batch = pack([clip], levels, [8.0], (1, 2, 2))
            return unpack(tiny_dit(batch, words, pooled, (5,)), batch.shapes, batch.patch)[0]

    for axis, step in ((1, 1), (2, 2), (3, 2)):
        moved = velocity(latents[0].roll(step, dims=axis)).roll(-step, dims=axis)
        assert (moved - velocity(latents[0])).abs().max() > 1e-3


def a_grid_and_weights():
    """A pack of a clip of 3 x 2 x 4 tokens and a picture of 1 x 3 x 2, values for it, and how much neighbours count."""
    clips = [torch.randn(2, 3, 4, 8), torch.randn(2, 1, 6, 4)]
    batch = pack(clips, [torch.ones(clip.shape[1:]) for clip in clips], [8.0, 8.0], (1, 2, 2))
    return batch, torch.randn(len(batch.tokens), 5, dtype=torch.float64), torch.randn(SIDES, 5, dtype=torch.float64)


def test_mixing_with_neighbours_is_a_depthwise_convolution_of_each_clip():
    batch, x, near = a_grid_and_weights()
    kernel = torch.zeros(5, 1, 3, 3, 3, dtype=torch.float64)
    kernel[:, 0, 1, 1, 1] = 1
    sides = ((0, 1, 1), (2, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 0), (1, 1, 2))
    for weight, (t, y, x_) in zip(near, sides, strict=True):
        kernel[:, 0, t, y, x_] = weight
    wanted = []
    for tokens, grid in zip(x.split(batch.lengths), ((3, 2, 4), (1, 3, 2)), strict=True):
        clip = tokens.T.reshape(1, 5, *grid)
        wanted.append(torch.nn.functional.conv3d(clip, kernel, padding=1, groups=5).reshape(5, -1).T)
    assert torch.allclose(mix(x, near, neighbours(batch)), torch.cat(wanted))


def test_the_gradient_of_mixing_is_right():
    batch, x, near = a_grid_and_weights()
    assert torch.autograd.gradcheck(
        lambda x, near: mix(x, near, neighbours(batch)), (x.requires_grad_(), near.requires_grad_())
    )


def test_a_fresh_model_predicts_nothing():
    model = DiT.from_shape(DiTConfig(depth=2, width=64, head_width=32, channels=4, words_width=24))
    latents, levels, words, pooled = inputs([(1, 4, 4)], (3,))
    assert not model(pack(latents, levels, [8.0], (1, 2, 2)), words, pooled, (3,)).any()


def test_a_deeper_model_begins_as_the_one_it_grew_from_and_learns_in_every_block(tiny_dit):
    latents, levels, words, pooled = inputs([(3, 4, 4), (1, 4, 4)], (5, 2))
    batch = pack(latents, levels, [8.0, 8.0], (1, 2, 2))
    model = tiny_dit.deeper(tiny_dit.shape.depth * 2 + 1)
    before, after = (one(batch, words, pooled, (5, 2)) for one in (tiny_dit, model))
    assert torch.equal(after, before) and before.std() > 0.01
    after.square().mean().backward()
    assert all(block.out.weight.grad.norm() > 0 and block.narrow.weight.grad.norm() > 0 for block in model.blocks)
    with pytest.raises(ValueError, match="at least the"):
        model.deeper(1)


@pytest.mark.parametrize("depth", [2, 6])
def test_flops_and_parameters_match_the_counter(depth):
    shape = DiTConfig.from_depth(depth, words_width=48)
    with torch.device("meta"):
        model = DiT.from_shape(shape)
    assert sum(value.numel() for value in model.parameters()) == parameters(shape)
    model = model.to_empty(device="cpu")
    latents = [torch.zeros(16, 5, 8, 8), torch.zeros(16, 1, 6, 8)]
    batch = pack(latents, [torch.zeros(clip.shape[1:]) for clip in latents], [8.0, 8.0], (1, 2, 2))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(batch, torch.zeros(13, 48), torch.zeros(2, 48), (9, 4))
    assert counter.get_total_flops() == forward_flops(shape, 80, 9) + forward_flops(shape, 12, 4)


def test_depth_is_the_one_dial():
    widths = [DiTConfig.from_depth(depth).width for depth in (2, 6, 12, 20, 30)]
    assert widths == sorted(widths)
    assert (DiTConfig.from_depth(30).width, DiTConfig.from_depth(30).head_width) == (1536, 128)
    assert all(
        DiTConfig.from_depth(depth).width % DiTConfig.from_depth(depth).head_width == 0 for depth in range(2, 40)
    )


def test_modulation_is_a_small_part_of_a_large_model():
    shape = DiTConfig.from_depth(30)
    modulation = 4 * shape.width * (shape.width + 1) + shape.depth * 4 * shape.width
    assert modulation / parameters(shape) < 0.03  # peers spend up to 40 % there
