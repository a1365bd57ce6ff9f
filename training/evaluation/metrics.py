"""How good is it: fidelity of reconstructions, and intervals that say how sure we are."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vae.losses import flatten_frames, ssim


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return each clip's peak signal-to-noise ratio in dB, (B,), of videos (B, 3, F, Y, X) in [-1, 1]: over all of its
    frames at once.
    """
    error = rearrange((a - b).square(), "B rgb F Y X -> B (rgb F Y X)").mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


def video_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return each clip's structural similarity, (B,), averaged over frames."""
    return rearrange(ssim(flatten_frames(a), flatten_frames(b)), "(B F) -> B F", B=len(a)).mean(1)


def lpips_or_none():
    """Return LPIPS (Zhang et al. 2018, arXiv 1801.03924) as a function of two videos, or None where its weights are not
    on this machine.

    The package `lpips` and torchvision's AlexNet in torch's hub folder; nothing is fetched.
    """
    from pathlib import Path

    stored = list((Path(torch.hub.get_dir()) / "checkpoints").glob("alexnet-*.pth"))
    try:
        import lpips
    except ImportError:
        return None
    if not stored:
        return None
    net = lpips.LPIPS(net="alex", verbose=False).eval()
    return lambda a, b: rearrange(net(flatten_frames(a), flatten_frames(b)), "(B F) 1 1 1 -> B F", B=len(a)).mean(1)


def principal_components(
    clips: np.ndarray, stride: tuple[int, int, int], channels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best linear code of a VAE's blocks of pixels: basis (values, channels), mean (values,), spread
    (channels,).

    clips are (B, 3, F, Y, X) uint8; as in the VAE, the first frame is a block of its own, repeated to fill it.
    """
    blocks, _ = _blocks(clips, stride)
    mean = blocks.mean(0)
    covariance = (blocks - mean).T @ (blocks - mean) / len(blocks)
    values, vectors = torch.linalg.eigh(covariance)
    return vectors[:, -channels:].flip(1), mean, values[-channels:].flip(0).clamp(min=1e-8).sqrt()


def linear_psnr(clips: np.ndarray, held_out: np.ndarray, stride: tuple[int, int, int], channels: int) -> Tensor:
    """Return the PSNR in dB, (B,), of held-out clips (B, 3, F, Y, X) uint8 through the best linear code of other
    clips.
    """
    basis, mean, _ = principal_components(clips, stride, channels)
    found = []
    for clip in held_out:
        own, back = _blocks(clip[None], stride)
        found.append(psnr(back((own - mean) @ basis @ basis.T + mean).clamp(-1, 1), back(own)))
    return torch.cat(found)


def _blocks(clips: np.ndarray, stride: tuple[int, int, int]):
    """Cut clips into a VAE's blocks, (N, values), and return how to put them together again."""
    from vae.model import patchify, unpatchify

    pixels = rearrange(torch.from_numpy(clips).float() / 127.5 - 1, "B rgb F Y X -> B F Y X rgb")
    folded = patchify(pixels, stride, first=True)
    B, T, H, W, _ = folded.shape

    def back(blocks: Tensor) -> Tensor:
        whole = unpatchify(rearrange(blocks, "(B T H W) D -> B T H W D", B=B, T=T, H=H, W=W), stride, first=True)
        return rearrange(whole, "B F Y X rgb -> B rgb F Y X")

    return rearrange(folded, "B T H W D -> (B T H W) D"), back


def bootstrap_interval(values: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float, float]:
    """Return a mean and its 95 % bootstrap interval (Efron 1979, percentiles), resampling the first axis: the
    prompts.
    """
    values = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(values), (draws, len(values)))
    means = values[chosen].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)
