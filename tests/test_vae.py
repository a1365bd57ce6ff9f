"""The spacetime VAE: causal, encoded and decoded in pieces, and its losses."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from training.evaluation.metrics import linear_psnr, principal_components, psnr
from vae.losses import PatchDiscriminator, adaptive_weight, discriminator_loss, kl, ms_ssim_loss, ssim
from vae.model import VideoVAE
from vae.weights import WEIGHTS, load_strictly, original_name

ONE, TWO = {"encoder_blocks": (1, 1), "decoder_blocks": (1, 1)}, ((1, 2, 2), (1, 2, 2))
SHAPES = {
    "4x8x8 to 16": {},
    "4x16x16 to 48": {"channels": 48, "widths": (16, 32, 48), "downs": TWO} | dict.fromkeys(ONE, (1, 1, 1)),
    "time stride in two stages": {"channels": 4, "patch": (2, 4, 4), "downs": ((2, 2, 2),)},
}


def tiny_vae(name="time stride in two stages") -> VideoVAE:
    torch.manual_seed(0)
    options = {"widths": (16, 32)} | ONE | SHAPES[name]
    vae = VideoVAE(**options).eval()
    for value in vae.parameters():
        torch.nn.init.normal_(value, std=0.1)
    vae.latent_mean.normal_()
    vae.latent_scale.uniform_(0.5, 2)
    return vae


def random_clip(frames=17, rows=32, columns=48):
    return torch.rand(1, 3, frames, rows, columns, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.mark.parametrize("name", SHAPES)
def test_a_clip_encoded_in_pieces_equals_the_whole(name):
    vae, clip = tiny_vae(name), random_clip()
    with torch.no_grad():
        whole, state, pieces = vae.encode(clip), None, []
        for begin, end in ((0, 5), (5, 9), (9, 17)):
            piece, state = vae.encode_piece(clip[:, :, begin:end], state)
            pieces.append(piece)
    assert whole.shape[2] == 5
    assert torch.allclose(torch.cat(pieces, dim=2), whole, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_a_clip_decoded_in_pieces_equals_the_whole(name):
    vae = tiny_vae(name)
    latents = torch.randn(1, vae.channels, 5, 2, 3, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        whole, state, pieces = vae.decode(latents), None, []
        for begin, end in ((0, 1), (1, 2), (2, 5)):
            piece, state = vae.decode_piece(latents[:, :, begin:end], state)
            pieces.append(piece)
    assert whole.shape[2] == 17
    assert torch.allclose(torch.cat(pieces, dim=2), whole, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_the_future_never_changes_the_past(name):
    vae, clip = tiny_vae(name), random_clip()
    other = clip.clone()
    other[:, :, 9:] = 0
    with torch.no_grad():
        assert torch.allclose(vae.encode(clip)[:, :, :3], vae.encode(other)[:, :, :3], atol=1e-6)
        assert not torch.allclose(vae.encode(clip)[:, :, 3:], vae.encode(other)[:, :, 3:], atol=1e-2)


def test_an_image_is_the_first_frame_of_a_clip():
    vae, clip = tiny_vae(), random_clip()
    with torch.no_grad():
        assert torch.allclose(vae.encode(clip[:, :, :1]), vae.encode(clip)[:, :, :1], atol=1e-6)


def test_latents_are_normalized_by_statistics_stored_in_the_model(tmp_path):
    vae, clip = tiny_vae(), random_clip()
    with torch.no_grad():
        raw, _, _ = vae.posterior(clip)
        latents = vae.encode(clip)
        assert torch.allclose(vae.denormalize(latents), raw, atol=1e-5)
        vae.save_pretrained(tmp_path)
        assert torch.equal(VideoVAE.from_pretrained(tmp_path).encode(clip), latents)


def test_a_folder_with_the_old_weight_names_loads_with_the_same_hash(tmp_path):
    vae = tiny_vae()
    vae.save_pretrained(tmp_path)
    old = {
        original_name(name, VideoVAE.old_weight_names): value for name, value in load_file(tmp_path / WEIGHTS).items()
    }
    assert {"encoder.enter.weight", "decoder.more.0.weight", "encoder.stages.1.0.mix_norm.bias"} <= old.keys()
    save_file(old, tmp_path / WEIGHTS)
    loaded = load_strictly(VideoVAE, tmp_path)
    assert all(torch.equal(value, vae.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert loaded.encoder_hash() == vae.encoder_hash()


def test_the_encoder_hash_of_the_shipped_vae_stays_as_it_was():
    assert load_strictly(VideoVAE, Path("app/models/first/vae")).encoder_hash() == "05ce689de884d495"


@pytest.mark.parametrize("frames, nearest", [(16, "13 and 17"), (2, "1 and 5"), (0, "1 and 5")])
def test_a_frame_count_that_does_not_fit_is_refused_with_the_nearest_that_do(frames, nearest):
    with pytest.raises(ValueError, match=rf"frames must be 1 \+ 4n for this VAE; got {frames}, nearest are {nearest}"):
        tiny_vae().latent_shape(frames, 32, 32)


def test_a_frame_size_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="multiples of 8 rows and 8 columns for this VAE; got 30x48"):
        tiny_vae().encode(random_clip(rows=30))


def test_a_vae_starts_as_the_best_linear_code():
    clips = (random_clip(5, 32, 32) * 127.5 + 127.5).to(torch.uint8).numpy()
    vae = VideoVAE(channels=4, widths=(16, 32), encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    vae.init_linear(*principal_components(clips, vae.stride, vae.channels))
    with torch.no_grad():
        pixels = torch.from_numpy(clips).float() / 127.5 - 1
        raw, _, _ = vae.posterior(pixels)
        reconstruction, _ = vae.reconstruct(raw)
    assert torch.allclose(
        psnr(reconstruction.clamp(-1, 1), pixels), linear_psnr(clips, clips, vae.stride, vae.channels), atol=1e-3
    )
    assert raw.var((0, 2, 3, 4)) == pytest.approx(torch.ones(4), abs=0.1)
    assert torch.allclose(vae.linear_preview(vae.normalize(raw)), reconstruction.clamp(-1, 1), atol=1e-5)


def test_a_vae_learns():
    torch.manual_seed(0)
    vae = VideoVAE(channels=8, widths=(16, 32), encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    axis = torch.linspace(0, 6, 48)
    clip = (axis[:32, None] + axis).sin().expand(2, 3, 5, 32, 48)
    optimizer = torch.optim.AdamW(vae.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        reconstruction, mean, log_variance = vae(clip, torch.randn(2, 8, 2, 4, 6))
        loss = (reconstruction - clip).abs().mean() + 1e-4 * kl(mean, log_variance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.4 * losses[0]


def test_kl_is_the_closed_form():
    mean, log_variance = torch.tensor([0.3]), torch.tensor([-0.5])
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0))
    assert torch.allclose(kl(mean, log_variance), wanted.mean())


def test_ssim_is_1_for_equal_images_and_falls_with_blur():
    clip = random_clip(2, 64, 64)
    frame = clip[:, :, 0]
    assert torch.allclose(ssim(frame, frame), torch.ones(1))
    blurred = torch.nn.functional.avg_pool3d(clip, (1, 3, 3), 1, (0, 1, 1))
    assert ms_ssim_loss(clip, clip) < 1e-5 < 0.1 < ms_ssim_loss(clip, blurred)


def test_the_adversarial_weight_balances_gradients_at_the_last_layer():
    torch.manual_seed(0)
    vae, discriminator, clip = VideoVAE(channels=4, widths=(16, 32)), PatchDiscriminator(8), random_clip(5)
    reconstruction, _, _ = vae(clip, torch.zeros(1, 4, 2, 4, 6))
    pixel_loss, adversarial = (reconstruction - clip).abs().mean(), -discriminator(reconstruction).mean()
    last = vae.decoder.conv_out.weight
    weight = adaptive_weight(pixel_loss, adversarial, last)
    one, other = (
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (pixel_loss, weight * adversarial)
    )
    assert torch.allclose(one, other, rtol=1e-2)


def test_the_hinge_loss_is_0_for_real_above_1_and_fake_below_minus_1():
    assert discriminator_loss(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -3.0])) == 0
    assert discriminator_loss(torch.tensor([0.0]), torch.tensor([0.0])) == 1


def test_a_linear_code_of_full_size_loses_nothing_and_a_smaller_one_loses_more():
    clips = (random_clip(5, 16, 16) * 127.5 + 127.5).to(torch.uint8).numpy()
    full = linear_psnr(clips, clips, (4, 4, 4), 4 * 4 * 4 * 3)
    small = linear_psnr(clips, clips, (4, 4, 4), 4)
    assert full > 60 > small


def test_psnr_is_20_db_for_a_tenth_of_the_range():
    clip = random_clip(2, 8, 8) * 0.5
    assert psnr(clip, clip + 0.2) == pytest.approx(20, abs=1e-3)
