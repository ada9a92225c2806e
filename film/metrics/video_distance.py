"""Distances between two sets of videos, and between a video and what it should have been. Our own arithmetic.

FVD (Unterthiner et al., 1812.01717) is the Frechet distance of features of a video network, KVD the unbiased squared
MMD of the same features with a cubic kernel. Features are made elsewhere; values compare only where features, resizing
and numbers of videos are the same. FVD is biased upwards for few videos: below some 256 rather read KVD.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["frechet_distance", "kernel_distance", "psnr", "ssim"]


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of features [n, d] and [m, d], computed in float64.

    The trace of the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric, so
    that no part of it turns complex. Raises ValueError for fewer than two videos.
    """
    _check(real, made)
    (mean1, cov1), (mean2, cov2) = (_moments(each.double()) for each in (real, made))
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov2 @ root).clamp(min=0).sqrt().sum()
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross)


def kernel_distance(real: Tensor, made: Tensor) -> float:
    """Unbiased squared MMD of features [n, d] and [m, d] with the kernel (x y / d + 1)^3, in float64.

    It can be slightly negative for sets that are alike. Raises ValueError for fewer than two videos.
    """
    _check(real, made)
    x, y = real.double(), made.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        matrix = kernel(a, a)
        return (matrix.sum() - matrix.trace()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def psnr(real: Tensor, made: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of frames of one shape in 0..1; infinite for equal ones."""
    error = (real.double() - made.double()).square().mean()
    return float(-10 * torch.log10(error))


def ssim(real: Tensor, made: Tensor) -> float:
    """Structural similarity of frames [T, H, W, 3] in 0..1, mean over all (Wang 2004): window of 11, sigma 1.5.

    Raises ValueError for frames smaller than the window.
    """
    if min(real.shape[1:3]) < 11:
        raise ValueError(f"Frames of {real.shape[2]} x {real.shape[1]} are smaller than SSIM's window of 11.")
    x, y = (each.double().movedim(-1, 1).flatten(0, 1)[:, None] for each in (real, made))
    steps = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(steps**2) / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2)[None, None]

    def blur(z: Tensor) -> Tensor:
        return F.conv2d(z, window)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    cov = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(value.mean())


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    return features.mean(0), torch.cov(features.T).reshape(features.shape[1], features.shape[1])


def _check(real: Tensor, made: Tensor) -> None:
    if min(len(real), len(made)) < 2:
        raise ValueError("A distance of sets needs two videos or more in each: add some.")
