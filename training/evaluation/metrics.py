"""Fidelity of reconstructions, and bootstrap intervals."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vae.losses import flatten_frames, ssim


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, (B,), of videos (B, 3, F, Y, X) in [-1, 1], over all frames."""
    error = rearrange((a - b).square(), "B rgb F Y X -> B (rgb F Y X)").mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


def video_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the structural similarity, (B,), of videos (B, 3, F, Y, X) in [-1, 1], averaged over frames."""
    return rearrange(ssim(flatten_frames(a), flatten_frames(b)), "(B F) -> B F", B=len(a)).mean(1)


def lpips_or_none():
    """Return LPIPS (Zhang et al. 2018, arXiv 1801.03924) as a function of two videos, or None if not installed.

    It needs the package `lpips`, and torchvision's AlexNet in torch's hub folder. Nothing is downloaded.
    """
    from pathlib import Path

    stored = list((Path(torch.hub.get_dir()) / "checkpoints").glob("alexnet-*.pth"))
    try:
        import lpips  # pyright: ignore[reportMissingImports]  # optional
    except ImportError:
        return None
    if not stored:
        return None
    net = lpips.LPIPS(net="alex", verbose=False).eval()
    return lambda a, b: rearrange(net(flatten_frames(a), flatten_frames(b)), "(B F) 1 1 1 -> B F", B=len(a)).mean(1)


def principal_components(
    clips: np.ndarray, stride: tuple[int, int, int], channels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the principal components of a VAE's pixel patches, its best linear code.

    Of clips (B, 3, F, Y, X) uint8: components (values, channels), mean (values,), and standard deviations (channels,).
    As in the VAE, the first frame alone makes patches, repeated to fill them.
    """
    patches, _ = _patches(clips, stride)
    mean = patches.mean(0)
    covariance = (patches - mean).T @ (patches - mean) / len(patches)
    values, vectors = torch.linalg.eigh(covariance)
    return vectors[:, -channels:].flip(1), mean, values[-channels:].flip(0).clamp(min=1e-8).sqrt()


def linear_psnr(clips: np.ndarray, held_out: np.ndarray, stride: tuple[int, int, int], channels: int) -> Tensor:
    """Return the PSNR in dB, (B,), of held-out clips (B, 3, F, Y, X) uint8 by the best linear code of other clips."""
    components, mean, _ = principal_components(clips, stride, channels)
    found = []
    for clip in held_out:
        patches, assemble = _patches(clip[None], stride)
        decoded = (patches - mean) @ components @ components.T + mean
        found.append(psnr(assemble(decoded).clamp(-1, 1), assemble(patches)))
    return torch.cat(found)


def _patches(clips: np.ndarray, stride: tuple[int, int, int]):
    """Cut clips into a VAE's patches, (N, values); return these and the function that assembles them again."""
    from vae.model import patchify, unpatchify

    pixels = rearrange(torch.from_numpy(clips).float() / 127.5 - 1, "B rgb F Y X -> B F Y X rgb")
    folded = patchify(pixels, stride, first=True)
    B, T, H, W, _ = folded.shape

    def assemble(patches: Tensor) -> Tensor:
        whole = unpatchify(rearrange(patches, "(B T H W) D -> B T H W D", B=B, T=T, H=H, W=W), stride, first=True)
        return rearrange(whole, "B F Y X rgb -> B rgb F Y X")

    return rearrange(folded, "B T H W D -> (B T H W) D"), assemble


def bootstrap_interval(values: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float, float]:
    """Return the mean of values (prompts,) and its 95 % bootstrap interval (Efron 1979, percentiles over prompts)."""
    values = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(values), (draws, len(values)))
    means = values[chosen].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)
