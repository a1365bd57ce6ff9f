"""Losses of the VAE: KL divergence, multi-scale SSIM, and an adversarial term."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, table 1


def kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the mean over latents of KL(N(mean, variance) || N(0, 1)), appendix B of arXiv 1312.6114."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def flatten_frames(video: Tensor) -> Tensor:
    """Rearrange videos (B, 3, F, Y, X) to a batch of images (B F, 3, Y, X)."""
    return rearrange(video, "B rgb F Y X -> (B F) rgb Y X")


def ssim_map(a: Tensor, b: Tensor, window: int = 7) -> tuple[Tensor, Tensor]:
    """Return the two factors of SSIM for images (B, 3, Y, X) in [-1, 1]: luminance, and contrast times structure, each
    (B, 3, y, x).

    Wang et al. 2004 (doi 10.1109/TIP.2003.819861), with a uniform window.
    """
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mean = lambda x: F.avg_pool2d(x, window, stride=1)
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, (2 * covariance + c2) / (var_a + var_b + c2)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the structural similarity (B,) of images (B, 3, Y, X) in [-1, 1]."""
    luminance, structure = ssim_map(a, b)
    return (luminance * structure).mean((1, 2, 3))


def ms_ssim_loss(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - multi-scale SSIM of videos (B, 3, F, Y, X): Wang et al. 2003 (doi 10.1109/ACSSC.2003.1292216).

    A perceptual term without trained weights. Uses as many of the five scales as the frame size allows.
    """
    a, b = flatten_frames(a), flatten_frames(b)
    scales = next(n for n in range(len(SCALES), 0, -1) if min(a.shape[2:]) >= 7 * 2 ** (n - 1))
    weights = [weight / sum(SCALES[:scales]) for weight in SCALES[:scales]]
    score = torch.ones((), device=a.device)
    for scale, weight in enumerate(weights):
        luminance, structure = ssim_map(a, b)
        factor = (luminance * structure if scale == scales - 1 else structure).mean((1, 2, 3))
        score = score * factor.clamp(min=1e-3) ** weight
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return 1 - score.mean()


class PatchDiscriminator(nn.Module):
    """Score each patch of each frame as real or fake: a PatchGAN (Isola et al. 2016, arXiv 1611.07004)."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),
            nn.GroupNorm(8, 4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 3, padding=1),
        )

    def forward(self, video: Tensor) -> Tensor:
        """Return scores (B F, 1, y, x), higher for real, of videos (B, 3, F, Y, X)."""
        return self.net(flatten_frames(video))


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the hinge loss (arXiv 1705.02894) of the scores of real and reconstructed frames."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_weight: Tensor) -> Tensor:
    """Return the weight that balances the gradients of both losses at the last layer (arXiv 2012.09841, equation 7)."""
    (reconstruction_grad,) = torch.autograd.grad(reconstruction, last_weight, retain_graph=True)
    (adversarial_grad,) = torch.autograd.grad(adversarial, last_weight, retain_graph=True)
    return (reconstruction_grad.norm() / (adversarial_grad.norm() + 1e-6)).clamp(max=1e4).detach()
