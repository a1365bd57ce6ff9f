"""The diffusion transformer, packing, and the cost model."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dit.flops import count_parameters, forward_flops
from dit.model import DiT, DiTConfig
from dit.neighbours import NEIGHBOURS, depthwise_mix, find_neighbours
from dit.packing import pack, patchify, unpack, unpatchify


def clips(shapes, channels=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(channels, *shape, generator=generator) for shape in shapes]


def inputs(shapes, text_lens, width=24):
    generator = torch.Generator().manual_seed(2)
    latents = clips(shapes)
    sigmas = [torch.full(shape, 0.1 + 0.2 * n) for n, shape in enumerate(shapes)]
    sigmas[0][0] = 0
    text = torch.randn(sum(text_lens), width, generator=generator)
    return latents, sigmas, text, torch.randn(len(shapes), width, generator=generator)


def test_unpatchify_inverts_patchify():
    (clip,) = clips([(3, 4, 6)])
    tokens = patchify(clip, (1, 2, 2))
    assert tokens.shape == (3 * 2 * 3, 4 * 4)
    assert torch.equal(unpatchify(tokens, (3, 4, 6), (1, 2, 2)), clip)


def test_unpack_inverts_pack():
    latents = clips([(3, 4, 6), (1, 8, 8)])
    batch = pack(latents, [torch.ones(clip.shape[1:]) for clip in latents], [8.0, 8.0], (1, 2, 2))
    assert batch.token_lens == (18, 16)
    for a, b in zip(unpack(batch.tokens, batch.shapes, batch.patch), latents, strict=True):
        assert torch.equal(a, b)


def test_a_patch_takes_the_highest_sigma_of_its_latents():
    sigma = torch.zeros(1, 2, 4)
    sigma[0, 0, 3] = 0.5
    batch = pack(clips([(1, 2, 4)]), [sigma], [8.0], (1, 2, 2))
    assert batch.sigma.tolist() == [0.0, 0.5]


def test_a_patch_must_divide_the_clip():
    with pytest.raises(ValueError, match=r"multiples of the patch \(1, 2, 2\); got \(1, 3, 4\)"):
        patchify(torch.zeros(4, 1, 3, 4), (1, 2, 2))


def test_a_clip_is_denoised_the_same_alone_or_in_a_pack(tiny_dit):
    shapes, text_lens = [(3, 4, 6), (2, 4, 4), (3, 4, 6), (1, 8, 8)], (5, 2, 3, 7)
    latents, sigmas, text, pooled_text = inputs(shapes, text_lens)
    fps = [8.0, 8.0, 4.0, 8.0]
    with torch.no_grad():
        batch = pack(latents, sigmas, fps, (1, 2, 2))
        together = unpack(tiny_dit(batch, text, pooled_text, text_lens), batch.shapes, batch.patch)
        for n, clip_text in enumerate(text.split(text_lens)):
            alone = pack(latents[n : n + 1], sigmas[n : n + 1], fps[n : n + 1], (1, 2, 2))
            velocity = tiny_dit(alone, clip_text, pooled_text[n : n + 1], text_lens[n : n + 1])
            assert torch.allclose(unpack(velocity, alone.shapes, alone.patch)[0], together[n], atol=1e-5)


def test_parts_of_a_pack_are_bit_identical_to_packs_of_their_own(tiny_dit):
    shapes = [(3, 4, 6), (3, 4, 6), (2, 4, 4), (3, 4, 6), (1, 8, 8), (1, 8, 8)]
    text_lens, parts = (5, 2, 3, 7, 4, 9), (2, 1, 3)
    latents, sigmas, text, pooled_text = inputs(shapes, text_lens)
    with torch.no_grad():
        batch = pack(latents, sigmas, [8.0] * 6, (1, 2, 2), parts)
        together = tiny_dit(batch, text, pooled_text, text_lens).split(
            [sum(batch.token_lens[a:b]) for a, b in ((0, 2), (2, 3), (3, 6))]
        )
        for (a, b), velocity in zip(((0, 2), (2, 3), (3, 6)), together, strict=True):
            alone = pack(latents[a:b], sigmas[a:b], [8.0] * (b - a), (1, 2, 2))
            part_text = text[sum(text_lens[:a]) : sum(text_lens[:b])]
            assert torch.equal(tiny_dit(alone, part_text, pooled_text[a:b], text_lens[a:b]), velocity)


def test_every_input_matters(tiny_dit):
    latents, sigmas, text, pooled_text = inputs([(3, 4, 6)], (5,))

    def velocity(latents=latents, sigmas=sigmas, text=text, pooled_text=pooled_text, fps=8.0):
        with torch.no_grad():
            return tiny_dit(pack(latents, sigmas, [fps], (1, 2, 2)), text, pooled_text, (5,))

    plain = velocity()
    changes = {
        "latents": velocity(latents=[latents[0] + 1]),
        "sigmas": velocity(sigmas=[sigmas[0] * 0.5]),
        "text": velocity(text=-text),
        "pooled_text": velocity(pooled_text=-pooled_text),
        "fps": velocity(fps=16.0),
    }
    for name, changed in changes.items():
        assert (changed - plain).abs().max() > 1e-3, name


def test_velocity_depends_on_a_tokens_position(tiny_dit):
    latents, sigmas, text, pooled_text = inputs([(3, 4, 6)], (5,))
    sigmas = [torch.full((3, 4, 6), 0.5)]

    def velocity(clip):
        with torch.no_grad():
            batch = pack([clip], sigmas, [8.0], (1, 2, 2))
            return unpack(tiny_dit(batch, text, pooled_text, (5,)), batch.shapes, batch.patch)[0]

    for axis, step in ((1, 1), (2, 2), (3, 2)):
        moved = velocity(latents[0].roll(step, dims=axis)).roll(-step, dims=axis)
        assert (moved - velocity(latents[0])).abs().max() > 1e-3


def mix_inputs():
    """Draw a pack of clips of 3 x 2 x 4 and 1 x 3 x 2 tokens, values (N, 5) and neighbour weights (6, 5)."""
    generator = torch.Generator().manual_seed(3)
    latents = clips([(3, 4, 8), (1, 6, 4)])
    batch = pack(latents, [torch.ones(clip.shape[1:]) for clip in latents], [8.0, 8.0], (1, 2, 2))
    draw = lambda rows: torch.randn(rows, 5, dtype=torch.float64, generator=generator)
    return batch, draw(len(batch.tokens)), draw(NEIGHBOURS)


def test_depthwise_mix_is_a_depthwise_convolution_of_each_clip():
    batch, x, weights = mix_inputs()
    kernel = torch.zeros(5, 1, 3, 3, 3, dtype=torch.float64)
    kernel[:, 0, 1, 1, 1] = 1
    offsets = ((0, 1, 1), (2, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 0), (1, 1, 2))
    for weight, (time, row, column) in zip(weights, offsets, strict=True):
        kernel[:, 0, time, row, column] = weight
    expected = []
    for tokens, grid in zip(x.split(batch.token_lens), ((3, 2, 4), (1, 3, 2)), strict=True):
        clip = tokens.T.reshape(1, 5, *grid)
        expected.append(torch.nn.functional.conv3d(clip, kernel, padding=1, groups=5).reshape(5, -1).T)
    assert torch.allclose(depthwise_mix(x, weights, find_neighbours(batch)), torch.cat(expected))


def test_the_gradient_of_depthwise_mix_matches_finite_differences():
    batch, x, weights = mix_inputs()
    assert torch.autograd.gradcheck(
        lambda x, weights: depthwise_mix(x, weights, find_neighbours(batch)),
        (x.requires_grad_(), weights.requires_grad_()),
    )


def test_a_fresh_model_predicts_zero_velocity():
    model = DiT.from_dit_config(DiTConfig(depth=2, width=64, head_dim=32, channels=4, text_dim=24))
    latents, sigmas, text, pooled_text = inputs([(1, 4, 4)], (3,))
    assert not model(pack(latents, sigmas, [8.0], (1, 2, 2)), text, pooled_text, (3,)).any()


def test_a_grown_model_computes_the_same_at_first_and_learns_in_every_block(tiny_dit):
    latents, sigmas, text, pooled_text = inputs([(3, 4, 4), (1, 4, 4)], (5, 2))
    batch = pack(latents, sigmas, [8.0, 8.0], (1, 2, 2))
    model = tiny_dit.grow_depth(tiny_dit.dit_config.depth * 2 + 1)
    before, after = (net(batch, text, pooled_text, (5, 2)) for net in (tiny_dit, model))
    assert torch.equal(after, before) and before.std() > 0.01
    after.square().mean().backward()
    assert all(block.attn_out.weight.grad.norm() > 0 and block.mlp_out.weight.grad.norm() > 0 for block in model.blocks)
    with pytest.raises(ValueError, match="at least the"):
        model.grow_depth(1)


@pytest.mark.parametrize("depth", [2, 6])
def test_flops_and_parameters_match_the_counter(depth):
    config = DiTConfig.from_depth(depth, text_dim=48)
    with torch.device("meta"):
        model = DiT.from_dit_config(config)
    assert sum(value.numel() for value in model.parameters()) == count_parameters(config)
    model = model.to_empty(device="cpu")
    latents = [torch.zeros(16, 5, 8, 8), torch.zeros(16, 1, 6, 8)]
    batch = pack(latents, [torch.zeros(clip.shape[1:]) for clip in latents], [8.0, 8.0], (1, 2, 2))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(batch, torch.zeros(13, 48), torch.zeros(2, 48), (9, 4))
    assert counter.get_total_flops() == forward_flops(config, 80, 9) + forward_flops(config, 12, 4)


def test_depth_is_the_one_dial():
    widths = [DiTConfig.from_depth(depth).width for depth in (2, 6, 12, 20, 30)]
    assert widths == sorted(widths)
    assert (DiTConfig.from_depth(30).width, DiTConfig.from_depth(30).head_dim) == (1536, 128)
    assert all(DiTConfig.from_depth(depth).width % DiTConfig.from_depth(depth).head_dim == 0 for depth in range(2, 40))


def test_modulation_is_a_small_part_of_a_large_model():
    config = DiTConfig.from_depth(30)
    modulation = 4 * config.width * (config.width + 1) + config.depth * 4 * config.width
    assert modulation / count_parameters(config) < 0.03  # peers spend up to 40 % there
