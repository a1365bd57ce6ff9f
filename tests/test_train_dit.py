"""Training the diffusion transformer: its initial weights, the examples of a step, and the loss weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dit.model import DiT
from dit.packing import pack
from training.checkpoints import load_state_tensors
from training.config import WorldRun
from training.dataset import make_world, open_bucket
from training.examples import LatentSource, TrainingExample, draw_examples, token_count
from training.text_conditioned import TextConditionedDiT
from training.train_dit import build_model, dit_config_for, pipeline_settings, train
from training.train_dit_step import loss_weights, saliency
from training.world.words import mirror_caption
from vae.model import VideoVAE
from vae.weights import WEIGHTS, current_name

PATCH = (1, 2, 2)


@pytest.fixture(scope="module")
def vae(vae_run, parts):
    return VideoVAE.from_pretrained(vae_run.out / "vae")


def open_source(run, vae, **options):
    return LatentSource.open(run, run.data, run.formats[0], vae, vae.encoder_hash(), **options)


def transformer_weights(run):
    return load_file(run.out / "model" / "transformer" / WEIGHTS)


def test_a_dit_continues_from_a_trained_one_and_grows(trained_dit, tmp_path):
    trained, before = trained_dit
    run = replace(trained, init_from=trained.out / "model" / "transformer", depth=3, out=tmp_path)
    first = DiT.from_pretrained(run.init_from)
    assert build_model(run, first.dit_config).dit_config == replace(first.dit_config, depth=3)
    after = train(replace(run, steps=1, lr=0.0, decay_steps=0))
    assert after == pytest.approx(before, rel=2e-3)  # the trained weights are stored in float16
    assert DiT.from_pretrained(run.out / "model" / "transformer").dit_config.depth == 3
    with pytest.raises(ValueError, match="init_from must have text_dim 8"):
        build_model(run, replace(first.dit_config, text_dim=8))


def test_a_checkpoint_of_version_0_1_loads(tiny_dit):
    wanted, old = tiny_dit.state_dict(), {}
    for name, value in wanted.items():
        for old_name, new_name in DiT.old_weight_names.items():
            if name != (found := current_name(name, {new_name: old_name})):
                name = found
                break
        old[name] = value
    assert {"embed.weight", "blocks.0.widen.weight", "blocks.0.near", "exit_scale.bias"} <= old.keys()
    model = TextConditionedDiT(DiT.from_dit_config(tiny_dit.dit_config))
    load_state_tensors(model, old)
    assert all(torch.equal(value, wanted[name]) for name, value in model.dit.state_dict().items())


def test_final_weights_are_interpolated_back_to_the_initial_ones(trained_dit, tmp_path):
    trained, _ = trained_dit
    run = replace(trained, init_from=trained.out / "model" / "transformer", steps=2, warmup_steps=0)
    final = {}
    for fraction in (0.0, 0.5, 1.0):
        changed = replace(run, interpolate_back=fraction, out=tmp_path / f"back-{fraction}")
        train(changed)
        final[fraction] = transformer_weights(changed)
    initial = transformer_weights(trained)
    assert any(not torch.equal(final[0.0][name], initial[name]) for name in initial)
    for name, value in initial.items():
        assert torch.equal(final[1.0][name], value)
        middle = (value.float() + final[0.0][name].float()) / 2
        assert torch.allclose(final[0.5][name].float(), middle, atol=2e-3)  # stored in float16


def test_the_times_of_a_step_are_spread_evenly(dit_run, vae):
    source = open_source(dit_run, vae)
    examples = [e for step in (0, 1) for e in draw_examples(dit_run, source, PATCH, range(8 * step, 8 * step + 8))]
    times = sorted(example.uniform for example in examples)
    gaps = [after - before for before, after in zip(times, [*times[1:], times[0] + 1], strict=True)]
    assert min(gaps) > 0.3 / 16 and max(gaps) < 2 / 16


def test_half_of_the_clips_are_flipped_and_so_are_their_captions(dit_run, vae):
    plain, flipping = (open_source(dit_run, vae, horizontal_flip=flip) for flip in (False, True))
    with torch.no_grad():
        wanted = vae.encode(open_bucket(dit_run.data, dit_run.formats[0]).load_clips([3]).flip(-1))[0].half()
    assert plain.flipped is None and np.array_equal(flipping.flipped[3], wanted)
    flips = 0
    batches = (draw_examples(dit_run, source, PATCH, range(40)) for source in (plain, flipping))
    for without, example in zip(*batches, strict=True):
        if torch.equal(without.latents, example.latents):
            assert example.caption == without.caption
        else:
            assert example.caption == mirror_caption(without.caption)
            flips += 1
        assert torch.equal(without.noise, example.noise) and torch.equal(without.denoise_mask, example.denoise_mask)
    assert 10 < flips < 30


@pytest.mark.slow
def test_an_example_of_a_long_clip_is_its_first_frame_and_a_random_window(dit_run, vae, tmp_path):
    world = WorldRun(folder=tmp_path / "world", formats=((64, 64, 33),), clips=(4,))
    make_world(world)
    run = replace(dit_run, data=world.folder, formats=((64, 64, 33), (64, 64, 17)), window_frames=17)
    source = open_source(run, vae)
    model = build_model(run, dit_config_for(run, vae.stride, vae.channels, 64))
    assert source.shape[1] == 5 and source.latents.shape[2] == 9 and pipeline_settings(run).formats == ((64, 64, 17),)
    starts = set()
    for example in draw_examples(run, source, PATCH, range(60)):
        clip = next(clip for clip in source.latents if np.array_equal(clip[:, 0], example.latents[:, 0].numpy()))
        found = {k for k in range(1, 6) if np.array_equal(clip[:, k : k + 4], example.latents[:, 1:].numpy())}
        assert found  # several where nothing moves
        assert 1 in found or (not example.denoise_mask[0].any() and example.denoise_mask[1:].any())
        assert example.denoise_mask.shape == example.noise.shape[1:] == source.shape[1:]
        starts |= found
    assert starts == {1, 2, 3, 4, 5} and token_count(source, model.dit_config) == 5 * 4 * 4


def test_salient_tokens_weigh_more_at_low_noise():
    rows = torch.linspace(-1, 1, 8)[None, None, :, None]
    latents = rows.expand(4, 3, 8, 8).clone()  # a background, the same in every column
    latents[:, :, 4:6, 2:4] += 1  # and an object on it
    salient = saliency(latents, PATCH).reshape(3, 4, 4)
    assert torch.allclose(salient[:, 2, 1], torch.tensor(1.0)) and not salient[:, 0].any()
    for sigma in (0.25, 0.5, 1.0):
        sigmas = torch.full((3, 8, 8), sigma)
        example = TrainingExample(latents, torch.randn(4, 3, 8, 8), sigmas, 0.5, "", 8.0)
        weights = loss_weights([example] * 2, pack([latents] * 2, [sigmas] * 2, [8.0] * 2, PATCH), 4.0)
        weights = weights.reshape(2, 3, 4, 4)
        strength = 4 * (1 - sigma)
        assert torch.allclose(weights.mean(), torch.tensor(1.0))
        assert torch.allclose(weights[:, :, 2, 1], torch.tensor((1 + 16 * strength) / (1 + strength)))
        assert torch.allclose(weights[:, :, 0], torch.tensor(1 / (1 + strength)))
    sigmas = torch.zeros(3, 8, 8)
    sigmas[:, 4:6, 2:6] = 0.5  # a region to denoise: the object and as much of the background
    example = TrainingExample(latents, torch.randn(4, 3, 8, 8), sigmas, 0.5, "", 8.0)
    batch = pack([latents], [sigmas], [8.0], PATCH)
    weights = loss_weights([example], batch, 4.0).reshape(3, 4, 4)
    assert torch.allclose(weights[:, 2, 1:3], torch.tensor([(1 + 2 * 2) / 3, 1 / 3]))
    without_object = replace(example, latents=torch.zeros(4, 3, 8, 8))
    assert torch.allclose(loss_weights([without_object], batch, 4.0), torch.ones(48, 1))
    assert torch.equal(loss_weights([example], batch, 0.0), torch.ones(48, 1))
