"""Optical flow between the frames of a video: by a loaded network, or without one by matching blocks.

The network is whatever ComfyUI's OPTICAL_FLOW socket carries: a patcher around a module that is called as torchvision's
RAFT is. Of ComfyUI only the type is used, never the module that defines its loader, which has moved between versions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
import torch
import torch.nn.functional as F
from torch import Tensor

from ...film.metrics.block_motion import block_motion
from ...film.metrics.frame_stats import small
from ...film.motion import MotionError, MotionMeter, MotionReport, resize_flow
from .source import Footage

__all__ = ["flow_between", "measure_motion"]

# RAFT looks at an eighth of the size and needs 16 pixels of it.
_MULTIPLE, _LEAST = 8, 128


def flow_between(frames: Tensor, estimator: Any = None, on_pair: Callable[[int, int], None] | None = None) -> Tensor:
    """Flow [T - 1, 2, H, W] in pixels, fp32 on the CPU: where each pixel of a frame is in the next one.

    frames: [T, H, W, 3] in 0..1, T at least 2. estimator: what an OPTICAL_FLOW socket carries; None matches blocks of 8
    pixels in a picture of 128, coarse but the same everywhere. on_pair(done, pairs) after each pair. Interruptible.
    Raises MotionError for a single frame.
    """
    if frames.ndim != 4 or len(frames) < 2:
        raise MotionError("Motion needs at least two frames: connect a video.")
    pairs, flows = len(frames) - 1, []
    step = _by_blocks if estimator is None else _by_network(estimator, frames.shape[1], frames.shape[2])
    for index in range(pairs):
        comfy.model_management.throw_exception_if_processing_interrupted()
        flows.append(step(frames[index : index + 1], frames[index + 1 : index + 2]))
        if on_pair is not None:
            on_pair(index + 1, pairs)
    return torch.cat(flows)


def measure_motion(footage: Footage, estimator: Any = None, predicted: Tensor | None = None) -> MotionReport:
    """Measure a video of any length as it streams by.

    estimator: as of flow_between. predicted: a model's own flow of the same video, [T - 1, 2, H, W] in pixels. Raises
    MotionError for a single frame, and for a predicted motion of another size or length.
    """
    meter, before, count = MotionMeter(footage.fps), None, 0
    flow_of: Callable[[Tensor, Tensor], Tensor] = _by_blocks
    bar = comfy.utils.ProgressBar(footage.frames) if footage.frames else None
    for piece in footage.stream():
        comfy.model_management.throw_exception_if_processing_interrupted()
        for frame in piece.float().cpu().split(1):
            if before is None:
                meter.begin(frame[0])
                flow_of = _by_blocks if estimator is None else _by_network(estimator, frame.shape[1], frame.shape[2])
            else:
                if predicted is not None and count > len(predicted):
                    raise MotionError(
                        f"The predicted motion has {len(predicted)} pairs, the video has more: use its own."
                    )
                meter.add(frame[0], flow_of(before, frame)[0], None if predicted is None else predicted[count - 1])
            before, count = frame, count + 1
        if bar is not None:
            bar.update_absolute(count)
    if predicted is not None and len(predicted) != count - 1:
        raise MotionError(f"The predicted motion has {len(predicted)} pairs, the video {count - 1}: use its own.")
    return meter.report()


def _by_blocks(before: Tensor, after: Tensor) -> Tensor:
    """Flow [1, 2, H, W] of two frames [1, H, W, 3]."""
    bright = [small(each)[0].mean(dim=0) for each in (before, after)]
    # Where each block of the first came from in the second is minus where it goes.
    backward, _ = block_motion(bright[1], bright[0])
    height, width = bright[0].shape
    dense = F.interpolate(-backward[None], size=(height, width), mode="bilinear", align_corners=False)
    return resize_flow(dense, (before.shape[1], before.shape[2]))


def _by_network(estimator: Any, height: int, width: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The function of two frames that asks the network, which is loaded now."""
    comfy.model_management.load_models_gpu([estimator])
    device, network = estimator.load_device, estimator.model
    size = tuple(max(_LEAST, -(-side // _MULTIPLE) * _MULTIPLE) for side in (height, width))

    def flow(before: Tensor, after: Tensor) -> Tensor:
        pair = []
        for frame in (before, after):
            pixels = frame[..., :3].movedim(-1, 1).to(device, torch.float32)
            pair.append(F.interpolate(pixels, size=size, mode="bilinear", align_corners=False) * 2 - 1)
        with torch.no_grad():
            found: Tensor = network(*pair)[-1].float().cpu()
        # The network's vectors are in pixels of the size it saw.
        return resize_flow(found, (height, width))

    return flow
