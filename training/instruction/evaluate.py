"""Measures of two folders of videos: FVD and KVD with an I3D of yours, PSNR and SSIM of videos of the same name.

The I3D is a TorchScript file that a person brings (`i3d_torchscript.pt` of StyleGAN-V or common_metrics); nothing is
downloaded. It is called as StyleGAN-V does, which is said in the result, as values of another flavour do not compare.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...film.metrics.video_distance import frechet_distance, kernel_distance, psnr, ssim
from ...film.video_reader import VIDEOS, list_videos
from .data import InstructionDataError, read_frames

__all__ = ["FLAVOUR", "compare_folders", "i3d_features", "load_i3d"]

FLAVOUR = "I3D TorchScript, StyleGAN-V call: 224 x 224 bilinear, [-1, 1], 400 features"
_SIDE = 224


def load_i3d(path: Path) -> Any:
    """The network. Raises InstructionDataError for a file that is no TorchScript."""
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, OSError, ValueError) as error:
        raise InstructionDataError(
            f"{path.name} is no TorchScript file: give i3d_torchscript.pt, as StyleGAN-V publishes it."
        ) from error


@torch.no_grad()
def i3d_features(network: Any, frames: Tensor) -> Tensor:
    """Features [400] of a video [T, H, W, 3] in 0..1, T at least 10. Raises InstructionDataError for a shorter one."""
    if len(frames) < 10:
        raise InstructionDataError(f"I3D reads 10 frames or more and a video has {len(frames)}: measure with more.")
    rows = F.interpolate(frames.movedim(-1, 1), size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
    video = (rows * 2 - 1).movedim(0, 1)[None]
    features: Tensor = network(video, rescale=False, resize=False, return_features=True)
    return features.flatten()


def compare_folders(
    real: Path,
    made: Path,
    *,
    frames: int = 16,
    size: tuple[int, int] = (256, 256),
    i3d: Path | None = None,
    swapped: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measures of all videos of two folders, JSON-able.

    frames: taken evenly from each video; size: (width, height), covered and cropped. i3d: TorchScript file; without it
    there is neither FVD nor KVD. swapped: folder of the made videos once more, from the same frames and seeds but with
    another instruction; "text_swap" is the mean absolute difference of their pixels, in percent of the range: near 0
    where the words are not read. A video that cannot be read is left out and named. Raises InstructionDataError for
    folders with nothing to compare.
    """
    sets = {name: _videos(folder, frames, size, say) for name, folder in (("real", real), ("made", made))}
    result: dict[str, Any] = {name: len(videos) for name, videos in sets.items()}
    if swapped is not None:
        others = _videos(swapped, frames, size, say)
        twins = sorted(sets["made"].keys() & others.keys())
        if not twins:
            raise InstructionDataError(
                f"{swapped} has no video of the same name as one of {made}: name the two films of a clip alike."
            )
        changes = [float((sets["made"][stem] - others[stem]).abs().mean()) for stem in twins]
        result |= {"swapped": len(twins), "text_swap": 100 * sum(changes) / len(twins)}
    pairs = sorted(sets["real"].keys() & sets["made"].keys())
    if pairs:
        both = [(sets["real"][stem], sets["made"][stem]) for stem in pairs]
        result |= {
            "pairs": len(pairs),
            "psnr": sum(psnr(a, b) for a, b in both) / len(pairs),
            "ssim": sum(ssim(a, b) for a, b in both) / len(pairs),
        }
    if i3d is not None:
        network = load_i3d(i3d)
        features = [torch.stack([i3d_features(network, video) for video in sets[name].values()]) for name in sets]
        try:
            distances = frechet_distance(*features), kernel_distance(*features)
        except ValueError as error:
            raise InstructionDataError(str(error)) from error
        result |= {"fvd": distances[0], "kvd": distances[1], "flavour": FLAVOUR}
    return result


def _videos(folder: Path, frames: int, size: tuple[int, int], say: Callable[[str], None]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in list_videos(folder):
        try:
            found[path.stem] = read_frames(path, frames, *size)
        except (OSError, ValueError) as error:
            say(f"Left out {path.name}: {error}")
    if not found:
        raise InstructionDataError(f"{folder} holds no video that can be read ({', '.join(VIDEOS)}).")
    return found
