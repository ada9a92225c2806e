"""FVD and KVD against a second calculation of another kind, PSNR and SSIM against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from longreel.film.metrics.video_distance import frechet_distance, kernel_distance, psnr, ssim


def features(count: int, seed: int, width: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, width, generator=generator) @ torch.randn(width, width, generator=generator)
    return mixed + seed / 3


def test_frechet_distance_is_that_of_scipys_matrix_root():
    real, made = features(50, 1).double().numpy(), features(60, 2).double().numpy()
    covs = np.cov(real, rowvar=False), np.cov(made, rowvar=False)
    root = scipy.linalg.sqrtm(covs[0] @ covs[1]).real
    expected = np.sum((real.mean(0) - made.mean(0)) ** 2) + np.trace(covs[0] + covs[1] - 2 * root)
    assert frechet_distance(torch.tensor(real), torch.tensor(made)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_a_set_to_itself_is_none_also_with_fewer_videos_than_features():
    assert frechet_distance(features(50, 1), features(50, 1)) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(features(5, 1), features(5, 1)) == pytest.approx(0, abs=1e-3)


def test_kernel_distance_is_the_sum_over_all_pairs():
    real, made = features(9, 1).double(), features(7, 2).double()

    def kernel(a, b) -> float:
        return (sum(float(x) * float(y) for x, y in zip(a, b)) / 12 + 1) ** 3

    def mean(a, b, same: bool) -> float:
        pairs = [kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(b) if not (same and i == j)]
        return sum(pairs) / len(pairs)

    expected = mean(real, real, True) + mean(made, made, True) - 2 * mean(real, made, False)
    assert kernel_distance(real, made) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_has_no_bias():
    values = [kernel_distance(features(20, 5), features(20, 5).flip(0)[torch.randperm(20)]) for _ in range(3)]
    assert max(values) < 0, "the same videos in both sets: unbiased, it is below 0"


def test_one_video_is_too_few():
    with pytest.raises(ValueError, match="two videos or more"):
        frechet_distance(features(1, 1), features(5, 1))


def test_psnr_and_ssim():
    frames = torch.rand(3, 24, 24, 3, generator=torch.Generator().manual_seed(1))
    assert psnr(frames, frames + 0.1) == pytest.approx(20, abs=1e-4)
    assert ssim(frames, frames) == pytest.approx(1)
    noisy = (frames + 0.2 * torch.randn(frames.shape)).clamp(0, 1)
    assert ssim(frames, noisy) < 0.95
    assert ssim(frames, 1 - frames) < 0
    with pytest.raises(ValueError, match="window of 11"):
        ssim(frames[:, :8], frames[:, :8])
