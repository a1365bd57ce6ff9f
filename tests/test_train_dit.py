"""Training the diffusion transformer: where it begins, which examples a step sees, and what counts in the loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training.config import WorldRun
from training.dataset import make_world, open_bucket
from vae.model import VideoVAE
from vae.weights import WEIGHTS


class Alone:
    """The only process of a run."""

    process_index, num_processes = 0, 1


def test_a_dit_goes_on_deeper_from_where_another_ended(dit_run, parts):
    from dit.model import DiT
    from training.train_dit import build_model, train

    before = train(replace(dit_run, steps=2))
    run = replace(dit_run, init_from=dit_run.out / "model" / "transformer", depth=3, out=dit_run.out.parent / "deeper")
    first = DiT.from_pretrained(run.init_from)
    assert build_model(run, first.dit_config).dit_config == replace(first.dit_config, depth=3)
    after = train(replace(run, steps=1, lr=0.0, decay_steps=0))
    assert after == pytest.approx(before, rel=2e-3)  # the start is stored in 16 bits
    assert DiT.from_pretrained(run.out / "model" / "transformer").dit_config.depth == 3
    with pytest.raises(ValueError, match="init_from must have text_dim 8"):
        build_model(run, replace(first.dit_config, text_dim=8))


def test_a_dit_goes_back_to_what_it_began_with(dit_run, parts):
    from training.train_dit import train

    if not (dit_run.out / "model").exists():
        train(dit_run)
    run = replace(
        dit_run, init_from=dit_run.out / "model" / "transformer", steps=2, warmup_steps=0, out=dit_run.out.parent
    )
    here, there, half = (replace(run, interpolate_back=back, out=run.out / f"back-{back}") for back in (0.0, 1.0, 0.5))
    for one in (here, there, half):
        train(one)
    begun, trained, between = (load_file(one.out / "model" / "transformer" / WEIGHTS) for one in (dit_run, here, half))
    returned = load_file(there.out / "model" / "transformer" / WEIGHTS)
    assert any(not torch.equal(trained[name], begun[name]) for name in begun)
    for name, value in between.items():
        assert torch.equal(returned[name], begun[name])
        assert torch.allclose(value.float(), (begun[name].float() + trained[name].float()) / 2, atol=2e-3)


def test_the_times_of_a_step_are_spread_evenly(dit_run, parts):
    from training.examples import LatentSource, draw_examples

    vae = VideoVAE.from_pretrained(dit_run.vae)
    source = LatentSource.open(dit_run, dit_run.data, dit_run.formats[0], vae, vae.encoder_hash())
    times = sorted(e.uniform for step in (0, 1) for e in draw_examples(dit_run, source, (1, 2, 2), 8, step, Alone))
    gaps = [after - before for before, after in zip(times, [*times[1:], times[0] + 1], strict=True)]
    assert min(gaps) > 0.3 / 16 and max(gaps) < 2 / 16


def test_half_of_the_clips_are_seen_in_a_mirror_and_their_words_say_so(dit_run, parts):
    from training.examples import LatentSource, draw_examples
    from training.world.words import in_a_mirror

    vae = VideoVAE.from_pretrained(dit_run.vae)
    plain, mirroring = (
        LatentSource.open(dit_run, dit_run.data, dit_run.formats[0], vae, vae.encoder_hash(), mirror)
        for mirror in (False, True)
    )
    with torch.no_grad():
        wanted = vae.encode(open_bucket(dit_run.data, dit_run.formats[0]).load_clips([3]).flip(-1))[0].half()
    assert plain.flipped is None and np.array_equal(mirroring.flipped[3], wanted)
    turned = 0
    for here, there in zip(
        *(draw_examples(dit_run, one, (1, 2, 2), 40, 0, Alone) for one in (plain, mirroring)), strict=True
    ):
        if torch.equal(here.latents, there.latents):
            assert there.caption == here.caption
        else:
            assert there.caption == in_a_mirror(here.caption)
            turned += 1
        assert torch.equal(here.noise, there.noise) and torch.equal(here.denoise_mask, there.denoise_mask)
    assert 10 < turned < 30


def test_of_long_clips_the_first_picture_and_a_stretch_from_anywhere_are_seen(dit_run, tmp_path):
    from training.examples import LatentSource, draw_examples, token_count
    from training.train_dit import build_model, dit_config_for, pipeline_settings

    world = WorldRun(folder=tmp_path / "world", formats=((64, 64, 33),), clips=(4,))
    make_world(world)
    run = replace(dit_run, data=world.folder, formats=((64, 64, 33), (64, 64, 17)), window_frames=17)
    vae = VideoVAE.from_pretrained(run.vae)
    source = LatentSource.open(run, run.data, run.formats[0], vae, vae.encoder_hash())
    dit = build_model(run, dit_config_for(run, vae.stride, vae.channels, 64))
    assert source.shape[1] == 5 and source.latents.shape[2] == 9 and pipeline_settings(run).formats == ((64, 64, 17),)
    begun = set()
    for example in draw_examples(run, source, (1, 2, 2), 60, 0, Alone):
        clip = next(clip for clip in source.latents if np.array_equal(clip[:, 0], example.latents[:, 0].numpy()))
        found = {k for k in range(1, 6) if np.array_equal(clip[:, k : k + 4], example.latents[:, 1:].numpy())}
        assert found  # several where the clip stands still
        assert 1 in found or (not example.denoise_mask[0].any() and example.denoise_mask[1:].any())
        assert example.denoise_mask.shape == example.noise.shape[1:] == source.shape[1:]
        begun |= found
    assert begun == {1, 2, 3, 4, 5} and token_count(source, dit.dit_config) == 5 * 4 * 4


def test_what_stands_out_counts_for_more_the_less_noise_there_is():
    from dit.packing import pack
    from training.examples import TrainingExample
    from training.train_dit import loss_weights, saliency

    patch, rows = (1, 2, 2), torch.linspace(-1, 1, 8)[None, None, :, None]
    latents = rows.expand(4, 3, 8, 8).clone()  # a sky and a ground, the same in every column
    latents[:, :, 4:6, 2:4] += 1  # and something on it
    out = saliency(latents, patch).reshape(3, 4, 4)
    assert torch.allclose(out[:, 2, 1], torch.tensor(1.0)) and not out[:, 0].any()
    for now in (0.25, 0.5, 1.0):
        level = torch.full((3, 8, 8), now)
        example = TrainingExample(latents, torch.randn(4, 3, 8, 8), level, 0.5, "", 8.0)
        weights = loss_weights([example] * 2, pack([latents] * 2, [level] * 2, [8.0] * 2, patch), 4.0)
        thing, ground = weights.reshape(2, 3, 4, 4)[:, :, 2, 1], weights.reshape(2, 3, 4, 4)[:, :, 0]
        share = 4 * (1 - now)
        assert torch.allclose(weights.mean(), torch.tensor(1.0))
        assert torch.allclose(thing, torch.tensor((1 + 16 * share) / (1 + share)))
        assert torch.allclose(ground, torch.tensor(1 / (1 + share)))
    level = torch.zeros(3, 8, 8)
    level[:, 4:6, 2:6] = 0.5  # a region anew: the thing and as much of the ground
    example = TrainingExample(latents, torch.randn(4, 3, 8, 8), level, 0.5, "", 8.0)
    weights = loss_weights([example], pack([latents], [level], [8.0], patch), 4.0).reshape(3, 4, 4)
    assert torch.allclose(weights[:, 2, 1:3], torch.tensor([(1 + 2 * 2) / 3, 1 / 3]))
    flat = loss_weights(
        [replace(example, latents=torch.zeros(4, 3, 8, 8))], pack([latents], [level], [8.0], patch), 4.0
    )
    assert torch.allclose(flat, torch.ones(48, 1))
    plain = loss_weights([example], pack([latents], [level], [8.0], patch), 0.0)
    assert torch.equal(plain, torch.ones(48, 1))
