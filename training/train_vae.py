"""Train the spacetime VAE: reconstruction first, a discriminator late, then the statistics of its latents.

longtake train vae --preset tiny
accelerate launch -m training.command vae --preset tiny
"""

from __future__ import annotations

import json

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from training.config import Format, VAERun
from training.dataset import Bucket, data_hash, open_bucket, sample_order, shard_samples, uint8_to_float
from training.evaluation.metrics import linear_psnr, lpips_or_none, principal_components, psnr, video_ssim
from training.loop import TrainLoop, build_adamw, create_accelerator, lr_at, optimizer_step, write_run_description
from training.muon import build_muon
from vae.losses import PatchDiscriminator, adaptive_weight, discriminator_loss, kl, ms_ssim_loss
from vae.model import ENCODER_PREFIXES, VideoVAE
from vae.weights import load_strictly

MEASURED_CLIPS = 256  # most clips for the statistics of the latents, and for the report
ABLATED_CLIPS = 8  # clips for the importance of the latent channels


def train(run: VAERun) -> dict:
    """Train a VAE; write its diffusers folder `run.out` / "vae", and return the report, also in report.json."""
    accelerator = create_accelerator(run)
    buckets = {format: open_bucket(run.data, format) for format in run.formats}
    write_run_description(run, accelerator, data=data_hash(run.data, run.formats))
    torch.manual_seed(run.seed)
    vae = build_model(run, buckets[run.formats[0]])
    discriminator = PatchDiscriminator(run.discriminator_width)
    optimizer = build_muon(vae.muon_params(), vae, run) if run.optimizer == "muon" else build_adamw(vae, run)
    discriminator_optimizer = build_adamw(discriminator, run)
    ema = EMAModel(vae.parameters(), decay=run.ema_decay, foreach=True)
    vae, discriminator, optimizer, discriminator_optimizer = accelerator.prepare(
        vae, discriminator, optimizer, discriminator_optimizer
    )
    ema.to(accelerator.device)
    parts = {
        "vae": vae,
        "discriminator": discriminator,
        "ema": ema,
        "optimizer": optimizer,
        "discriminator_optimizer": discriminator_optimizer,
    }
    loop = TrainLoop("train vae", run, accelerator, parts)
    unwrapped = accelerator.unwrap_model(vae)

    for step in loop:
        pixels, noise = draw_batch(run, buckets, unwrapped.latent_shape, step, accelerator)
        decoded, mean, log_variance = vae(pixels, noise)
        reconstruction = (decoded - pixels).abs().mean() + run.perceptual_weight * ms_ssim_loss(decoded, pixels)
        divergence = kl(mean, log_variance)
        loss = reconstruction + run.kl_weight * divergence
        lr = lr_at(step, run)
        if step >= run.adversarial_start:
            fake_loss = discriminator_loss(discriminator(pixels), discriminator(decoded.detach()))
            discriminator_lr = run.discriminator_lr * (lr / run.lr)
            optimizer_step(
                accelerator, discriminator, discriminator_optimizer, fake_loss, discriminator_lr, run.max_grad_norm
            )
            discriminator.requires_grad_(False)
            adversarial = -discriminator(decoded).mean()
            balance = adaptive_weight(reconstruction, adversarial, unwrapped.decoder.conv_out.weight)
            loss = loss + run.adversarial_weight * balance * adversarial
            discriminator.requires_grad_(True)
            loop.running_means.add(discriminator=fake_loss)
        grad_norm = optimizer_step(accelerator, vae, optimizer, loss, lr, run.max_grad_norm)
        if grad_norm is not None:
            ema.step(unwrapped.parameters())
        loop.record(step, grad_norm, reconstruction=reconstruction, kl=divergence)
        if step % run.validate_every == run.validate_every - 1:
            loop.log(step + 1, {"psnr": held_out_psnr(unwrapped, ema, run)})

    ema.copy_to(unwrapped.parameters())
    unwrapped.eval()
    if not run.freeze_encoder:
        set_latent_statistics(unwrapped, list(buckets.values()))
    report = measure(unwrapped, run)
    if accelerator.is_main_process:
        unwrapped.save_pretrained(run.out / "vae")
        (run.out / "report.json").write_text(json.dumps(report, indent=2))
    accelerator.end_training()
    return report


def build_model(run: VAERun, bucket: Bucket) -> VideoVAE:
    """Return the VAE before the first step: the best linear autoencoder of a bucket, or the one in `run.init_from`.

    Raises ValueError for `freeze_encoder` without `init_from`.
    """
    if run.init_from is None and run.freeze_encoder:
        raise ValueError("freeze_encoder needs a trained encoder; got none, so give --init-from FOLDER")
    if run.init_from is not None:
        vae = load_strictly(VideoVAE, run.init_from)
        for name, value in vae.named_parameters():
            value.requires_grad_(not (run.freeze_encoder and name.startswith(ENCODER_PREFIXES)))
        return vae.train()
    vae = VideoVAE(run.channels, run.patch, run.widths, run.downsample, run.encoder_blocks, run.decoder_blocks)
    clips = np.array(bucket.pixels[: min(MEASURED_CLIPS, len(bucket))])
    vae.init_linear(*principal_components(clips, vae.stride, run.channels))
    return vae


def draw_batch(
    run: VAERun, buckets: dict[Format, Bucket], latent_shape, step: int, accelerator
) -> tuple[Tensor, Tensor]:
    """Draw one process's pixels (B, 3, F, Y, X) of a step, and the noise (B, C, T, H, W) for their latents.

    Format, frames and start depend on (seed, step) alone; clips and noise on (seed, global sample index).
    """
    rng = np.random.default_rng([run.seed, 2, step])
    format = run.formats[int(rng.choice(len(run.formats), p=_format_probabilities(buckets)))]
    bucket = buckets[format]
    clip_of = sample_order(run.seed, "vae", len(bucket))
    samples = list(shard_samples(run.batch_size, step, accelerator.process_index, accelerator.num_processes))
    frames = 1 if rng.random() < run.image_ratio else min(run.frames, format[2])
    start = int(rng.integers(format[2] - frames + 1))
    pixels = np.stack([bucket.pixels[clip_of(sample), :, start : start + frames] for sample in samples])
    shape = (run.channels, *latent_shape(frames, format[1], format[0]))
    noise = np.stack(
        [np.random.default_rng([run.seed, 3, sample]).standard_normal(shape, dtype=np.float32) for sample in samples]
    )
    device = accelerator.device
    return uint8_to_float(torch.from_numpy(pixels)).to(device), torch.from_numpy(noise).to(device)


def _format_probabilities(buckets: dict[Format, Bucket]) -> np.ndarray:
    sizes = np.array([len(bucket) for bucket in buckets.values()], dtype=float)
    return sizes / sizes.sum()


@torch.no_grad()
def held_out_psnr(vae: VideoVAE, ema: EMAModel, run: VAERun, clips: int = 16) -> float:
    """Return the PSNR in dB of the averaged weights on a few held-out clips."""
    ema.store(vae.parameters())
    ema.copy_to(vae.parameters())
    bucket = open_bucket(run.held_out, run.formats[0])
    pixels = bucket.load_clips(range(min(clips, len(bucket)))).to(vae.device)
    mean, _, _ = vae.posterior(pixels)
    decoded, _ = vae.reconstruct(mean)
    ema.restore(vae.parameters())
    return float(psnr(decoded.clamp(-1, 1), pixels).mean())


@torch.no_grad()
def set_latent_statistics(vae: VideoVAE, buckets: list[Bucket]) -> None:
    """Set the VAE's buffers `latent_mean` and `latent_scale` from raw latents of training clips.

    Normalised latents have mean 0, and as variance of each channel its `channel_importance`.
    """
    total = total_square = torch.zeros(vae.channels, dtype=torch.float64, device=vae.device)
    count = 0
    for bucket in buckets:
        for index in range(min(MEASURED_CLIPS, len(bucket))):
            mean, log_variance, _ = vae.posterior(bucket.load_clips([index]).to(vae.device))
            total = total + mean.double().sum((0, 2, 3, 4))
            total_square = total_square + (mean.double().square() + log_variance.double().exp()).sum((0, 2, 3, 4))
            count += mean[0, 0].numel()
    mean, std = total / count, (total_square / count - (total / count) ** 2).sqrt()
    vae.latent_mean.copy_(mean)
    vae.latent_scale.copy_(std / channel_importance(vae, buckets[0]).sqrt())


def channel_importance(vae: VideoVAE, bucket: Bucket) -> Tensor:
    """Return the importance of each latent channel (C,), 1 on average.

    It is the mean square change of the decoded pixels when the channel is set to its mean, over a few clips. Latents of
    unit variance would give a channel of fine texture the weight of one that holds the scene: a diffusion model then
    learns the texture first.
    """
    raw, _, _ = vae.posterior(bucket.load_clips(range(min(ABLATED_CLIPS, len(bucket)))).to(vae.device))
    complete, _ = vae.reconstruct(raw)
    changes = []
    for channel in range(vae.channels):
        ablated = raw.clone()
        ablated[:, channel] = vae.latent_mean[channel]
        changes.append((vae.reconstruct(ablated)[0] - complete).square().mean())
    change = torch.stack(changes)
    return change / change.mean()


@torch.no_grad()
def measure(vae: VideoVAE, run: VAERun) -> dict:
    """Return PSNR, SSIM and LPIPS of held-out clips of every format.

    `linear_psnr` is the PSNR of the best linear autoencoder with equally many latents.
    """
    lpips = lpips_or_none()
    report: dict = {"stride": list(vae.stride), "channels": vae.channels, "formats": {}}
    for format in run.formats:
        bucket = open_bucket(run.held_out, format)
        count = min(MEASURED_CLIPS, len(bucket))
        scores: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "lpips": []}
        for index in range(count):
            pixels = bucket.load_clips([index]).to(vae.device)
            decoded = vae.decode(vae.encode(pixels))
            scores["psnr"].append(psnr(decoded, pixels))
            scores["ssim"].append(video_ssim(decoded, pixels))
            if lpips:
                scores["lpips"].append(lpips(decoded, pixels))
        found = {name: float(torch.cat(values).mean()) for name, values in scores.items() if values}
        training = open_bucket(run.data, format)
        fitted = np.array(training.pixels[: min(MEASURED_CLIPS, len(training))])
        held_out = np.array(bucket.pixels[:count])
        found["linear_psnr"] = float(linear_psnr(fitted, held_out, vae.stride, vae.channels).mean())
        report["formats"]["x".join(map(str, format))] = found | {"clips": count}
    return report
