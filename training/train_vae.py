"""Train the spacetime VAE: fidelity first, a critic late, and at the end the statistics of its latents.

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
from training.evaluation.metrics import linear_psnr, lpips_or_none, principal, psnr, video_ssim
from training.loop import TrainLoop, adamw, create_accelerator, describe, lr_at, optimizer_step
from training.muon import muon
from vae.losses import PatchDiscriminator, adaptive_weight, discriminator_loss, kl, ms_ssim_loss
from vae.model import ENCODER_PREFIXES, VideoVAE
from vae.weights import load_strictly

MEASURED = 256  # clips for the statistics of the latents, and at most as many for the report
SILENCED = 8  # clips for the loudness of the latents' channels


def train(run: VAERun) -> dict:
    """Train a VAE from a preset; leaves a diffusers folder in `run.out` / "vae" and returns the report, also in
    report.json.
    """
    accelerator = create_accelerator(run)
    buckets = {format: open_bucket(run.data, format) for format in run.formats}
    describe(run, accelerator, data=data_hash(run.data, run.formats))
    torch.manual_seed(run.seed)
    vae = begin(run, buckets[run.formats[0]])
    critic = PatchDiscriminator(run.discriminator_width)
    optimizer = muon(vae.muon_params(), vae, run) if run.optimizer == "muon" else adamw(vae, run)
    critic_optimizer = adamw(critic, run)
    average = EMAModel(vae.parameters(), decay=run.ema_decay, foreach=True)
    vae, critic, optimizer, critic_optimizer = accelerator.prepare(vae, critic, optimizer, critic_optimizer)
    average.to(accelerator.device)
    parts = {
        "vae": vae,
        "critic": critic,
        "average": average,
        "optimizer": optimizer,
        "critic_optimizer": critic_optimizer,
    }
    course = TrainLoop("train vae", run, accelerator, parts)
    bare = accelerator.unwrap_model(vae)

    for step in course:
        pixels, noise = batch(run, buckets, bare.latent_shape, step, accelerator)
        shown, mean, log_variance = vae(pixels, noise)
        fidelity = (shown - pixels).abs().mean() + run.perceptual_weight * ms_ssim_loss(shown, pixels)
        narrowness = kl(mean, log_variance)
        loss = fidelity + run.kl_weight * narrowness
        rate = lr_at(step, run)
        if step >= run.adversarial_start:
            critic_loss = discriminator_loss(critic(pixels), critic(shown.detach()))
            scale = rate / run.lr
            optimizer_step(
                accelerator, critic, critic_optimizer, critic_loss, run.discriminator_lr * scale, run.max_grad_norm
            )
            critic.requires_grad_(False)
            against = -critic(shown).mean()
            loss = (
                loss + run.adversarial_weight * adaptive_weight(fidelity, against, bare.decoder.exit.weight) * against
            )
            critic.requires_grad_(True)
            course.average.add(critic=critic_loss)
        norm = optimizer_step(accelerator, vae, optimizer, loss, rate, run.max_grad_norm)
        if norm is not None:
            average.step(bare.parameters())
        course.note(step, norm, fidelity=fidelity, kl=narrowness)
        if step % run.validate_every == run.validate_every - 1:
            course.log(step + 1, {"psnr": held_out_psnr(bare, average, run)})

    average.copy_to(bare.parameters())
    bare.eval()
    if not run.freeze_encoder:
        measure_latents(bare, list(buckets.values()))
    report = measure(bare, run)
    if accelerator.is_main_process:
        bare.save_pretrained(run.out / "vae")
        (run.out / "report.json").write_text(json.dumps(report, indent=2))
    accelerator.end_training()
    return report


def begin(run: VAERun, bucket: Bucket) -> VideoVAE:
    """Return a run's VAE as it is before the first step: the best linear code, or the one to start from.

    Raises ValueError where only a decoder is to be trained and there is no encoder to start from.
    """
    if run.init_from is None and run.freeze_encoder:
        raise ValueError("decoder_only needs a VAE whose encoder stays; got none, so give --start FOLDER")
    if run.init_from is not None:
        vae = load_strictly(VideoVAE, run.init_from)
        for name, value in vae.named_parameters():
            value.requires_grad_(not (run.freeze_encoder and name.startswith(ENCODER_PREFIXES)))
        return vae.train()
    vae = VideoVAE(run.channels, run.patch, run.widths, run.downsample, run.encoder_blocks, run.decoder_blocks)
    vae.init_linear(*principal(np.array(bucket.pixels[: min(MEASURED, len(bucket))]), vae.stride, run.channels))
    return vae


def batch(run: VAERun, buckets: dict[Format, Bucket], latent_shape, step: int, accelerator) -> tuple[Tensor, Tensor]:
    """Return a step's pixels (B, 3, F, Y, X) and the noise for its latents: functions of (seed, step) and each sample's
    number alone.
    """
    rng = np.random.default_rng([run.seed, 2, step])
    format = run.formats[int(rng.choice(len(run.formats), p=_shares(buckets)))]
    bucket = buckets[format]
    clip_of = sample_order(run.seed, "vae", len(bucket))
    samples = list(shard_samples(run.batch_size, step, accelerator.process_index, accelerator.num_processes))
    frames = 1 if rng.random() < run.image_ratio else min(run.frames, format[2])
    start = int(rng.integers(format[2] - frames + 1))
    pixels = np.stack([bucket.pixels[clip_of(n), :, start : start + frames] for n in samples])
    pixels = uint8_to_float(torch.from_numpy(pixels)).to(accelerator.device)
    shape = (run.channels, *latent_shape(frames, format[1], format[0]))
    noise = np.stack(
        [np.random.default_rng([run.seed, 3, n]).standard_normal(shape, dtype=np.float32) for n in samples]
    )
    return pixels, torch.from_numpy(noise).to(accelerator.device)


def _shares(buckets: dict[Format, Bucket]) -> np.ndarray:
    sizes = np.array([len(bucket) for bucket in buckets.values()], dtype=float)
    return sizes / sizes.sum()


@torch.no_grad()
def held_out_psnr(vae: VideoVAE, average: EMAModel, run: VAERun, clips: int = 16) -> float:
    """Return the averaged weights' PSNR in dB on a few held-out clips."""
    average.store(vae.parameters())
    average.copy_to(vae.parameters())
    bucket = open_bucket(run.held_out, run.formats[0])
    pixels = bucket.load_clips(range(min(clips, len(bucket)))).to(vae.device)
    mean, _, _ = vae.posterior(pixels)
    shown, _ = vae.reconstruct(mean)
    average.restore(vae.parameters())
    return float(psnr(shown.clamp(-1, 1), pixels).mean())


@torch.no_grad()
def measure_latents(vae: VideoVAE, buckets: list[Bucket]) -> None:
    """Put the statistics of the raw latents over training clips into the VAE's buffers: each channel's mean, and the
    scale that leaves it with its share of the picture as its variance.
    """
    total, squares, count = 0.0, 0.0, 0
    for bucket in buckets:
        for number in range(min(MEASURED, len(bucket))):
            mean, log_variance, _ = vae.posterior(bucket.load_clips([number]).to(vae.device))
            total = total + mean.double().sum((0, 2, 3, 4))
            squares = squares + (mean.double().square() + log_variance.double().exp()).sum((0, 2, 3, 4))
            count += mean[0, 0].numel()
    mean, spread = total / count, (squares / count - (total / count) ** 2).sqrt()
    vae.latent_mean.copy_(mean)
    vae.latent_scale.copy_(spread / loudness(vae, buckets[0]).sqrt())


def loudness(vae: VideoVAE, bucket: Bucket) -> Tensor:
    """Return how much of the picture hangs on each latent channel, 1 on average: the mean square of what changes in the
    pixels when the channel is silenced, over a few clips.

    White latents give the last ripple of a texture the weight of the sky: a diffusion model then learns ripples first.
    """
    raw, _, _ = vae.posterior(bucket.load_clips(range(min(SILENCED, len(bucket)))).to(vae.device))
    whole, _ = vae.reconstruct(raw)
    changes = []
    for channel in range(vae.channels):
        silenced = raw.clone()
        silenced[:, channel] = vae.latent_mean[channel]
        changes.append((vae.reconstruct(silenced)[0] - whole).square().mean())
    found = torch.stack(changes)
    return found / found.mean()


@torch.no_grad()
def measure(vae: VideoVAE, run: VAERun) -> dict:
    """Report PSNR, SSIM and LPIPS of whole held-out clips of every format, and the PSNR of a linear code of the same
    size.
    """
    lpips = lpips_or_none()
    report: dict = {"stride": list(vae.stride), "channels": vae.channels, "formats": {}}
    for format in run.formats:
        bucket = open_bucket(run.held_out, format)
        count = min(MEASURED, len(bucket))
        rows: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "lpips": []}
        for number in range(count):
            pixels = bucket.load_clips([number]).to(vae.device)
            shown = vae.decode(vae.encode(pixels))
            rows["psnr"].append(psnr(shown, pixels))
            rows["ssim"].append(video_ssim(shown, pixels))
            if lpips:
                rows["lpips"].append(lpips(shown, pixels))
        found = {name: float(torch.cat(values).mean()) for name, values in rows.items() if values}
        train = open_bucket(run.data, format)
        chosen = np.array(train.pixels[: min(MEASURED, len(train))])
        found["linear_psnr"] = float(
            linear_psnr(chosen, np.array(bucket.pixels[:count]), vae.stride, vae.channels).mean()
        )
        report["formats"]["x".join(map(str, format))] = found | {"clips": count}
    return report
