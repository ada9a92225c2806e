"""Where the collage ends and the shot begins, and the shot without the collage.

The fixed rule is the published one: the first four frames are the collage, the content starts at index 4
(docs/methods/ffgo.md, cut), so N clean frames need L = N + 4. Real cuts come earlier or up to a second later; the
automatic rule looks for them. It reports what it did in every case, and drops nothing when no frame resembles the
collage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from .values import FirstFrameError

__all__ = [
    "COLLAGE_FRAMES",
    "TWO_LATENTS",
    "Cut",
    "CutStatus",
    "Trimmed",
    "clean_frames",
    "find_cut",
    "request_length",
    "trim_transition",
]

COLLAGE_FRAMES = 4
TWO_LATENTS = 5
"""Frames of the first two latents: drops the latent the cut lies in as well."""
FRAMES_PER_LATENT = 4
MAX_TRIM = 24
SETTLED_FRAMES = 12
"""Frames after the longest trim, as a sample of the clip without the collage."""

WORKING_SIZE = (90, 160)
TRACE = 0.035
"""Share of the collage in a frame that still counts as collage: a third of what a fade of eight frames ends with."""
NOISE_FACTOR = 6.0
"""A trace must also exceed this many times the settled frames' own spread."""
CLEAN_RUN = 6
"""Frames without a trace that make a cut. A trace that comes back later is reported, not cut away with the shot."""
LEAST_COLLAGE = 0.5
"""Likeness that frame 0 must have to the canvas, and share of it at which settled frames are still the collage."""
WHITE_LEVEL = 0.92
WHITE_SHARE = 0.25

CutStatus = Literal["found", "no cut", "no collage", "fixed"]


def request_length(clean: int) -> int:
    """Frames to ask a model for so that `clean` remain: L = N + 4. Both are 1 more than a multiple of 4 (Wan's VAE).

    Raises FirstFrameError for any other number of frames.
    """
    if clean < 1 or clean % FRAMES_PER_LATENT != 1:
        raise FirstFrameError(f"{clean} frames cannot be filmed: choose 1 more than a multiple of 4, such as 77 or 81.")
    return clean + COLLAGE_FRAMES


def clean_frames(requested: int) -> int:
    """Frames that remain of a request after the fixed rule: the inverse of `request_length`."""
    if requested <= COLLAGE_FRAMES:
        raise FirstFrameError(f"A clip of {requested} frames is collage only: film at least {COLLAGE_FRAMES + 1}.")
    return requested - COLLAGE_FRAMES


@dataclass(frozen=True)
class Cut:
    """The cut found in a clip.

    index: first frame of the content. status: "found"; "no cut" = the collage never goes, index is the fixed rule's;
    "no collage" = the clip does not begin with it, index 0; "fixed" = nothing was looked for. leak: largest trace of
    the collage after the cut, 0..1. traces: the collage's share of each frame looked at, about 1 for the collage itself
    and 0 for content (to plot; empty if none were taken). message: a sentence for the user.
    """

    index: int
    status: CutStatus
    leak: float
    traces: tuple[float, ...]
    message: str


@dataclass(frozen=True, eq=False)
class Trimmed:
    """A clip without its collage: frames [T - cut.index, H, W, 3], never empty, and how it was cut."""

    frames: torch.Tensor
    cut: Cut


def trim_transition(
    frames: torch.Tensor,
    canvas: torch.Tensor | None,
    mode: Literal["fixed", "two latents", "auto"] = "auto",
    max_trim: int = MAX_TRIM,
) -> Trimmed:
    """Take the collage off a clip.

    frames: [T, H, W, 3], 0..1. canvas: the composed first frame [H, W, 3] or [1, H, W, 3]; only "auto" needs it. mode:
    "fixed" drops 4 frames, "two latents" 5, "auto" what `find_cut` finds. Raises FirstFrameError if nothing would be
    left.
    """
    _check_frames(frames)
    if mode == "auto":
        if canvas is None:
            raise FirstFrameError("Finding the cut needs the composed first frame: connect it or use the fixed rule.")
        cut = find_cut(frames, canvas, max_trim)
    else:
        count = COLLAGE_FRAMES if mode == "fixed" else TWO_LATENTS
        cut = Cut(count, "fixed", 0.0, (), f"Dropped the first {count} frames without looking at them.")
    if cut.index >= frames.shape[0]:
        raise FirstFrameError(
            f"The clip has {frames.shape[0]} frames and the first {cut.index} are the collage: film a longer one."
        )
    return Trimmed(frames[cut.index :], cut)


def find_cut(frames: torch.Tensor, canvas: torch.Tensor, max_trim: int = MAX_TRIM) -> Cut:
    """The first frame that is free of the collage together with the five after it.

    frames: [T, H, W, 3], 0..1. canvas: [H, W, 3] or [1, H, W, 3], any size. max_trim: latest index of the content.

    Each frame's fine structure is projected on the canvas' fine structure: that is the collage's share of the frame,
    and it detects a cross-fade down to a few per cent. The median of the settled frames at the end of the window, a
    chance correlation, is subtracted. A frame is also collage while the canvas' white is still white in it, unless the
    shot itself is white there: this covers a collage that zooms or slides away, when structures no longer overlap.
    """
    _check_frames(frames)
    if max_trim < 1:
        raise FirstFrameError(f"The latest cut must be frame 1 or later, not {max_trim}.")
    collage = canvas[None] if canvas.ndim == 3 else canvas
    if collage.ndim != 4 or collage.shape[0] != 1 or collage.shape[-1] != 3:
        raise FirstFrameError(f"The first frame must be one RGB picture [height, width, 3], not {list(canvas.shape)}.")
    seen = _small(frames[: max_trim + 1 + SETTLED_FRAMES])
    small_collage = _small(collage)
    fine, fine_collage = _fine(seen), _fine(small_collage)
    likeness = F.cosine_similarity(fine[0].flatten(), fine_collage.flatten(), dim=0)
    if likeness < LEAST_COLLAGE:
        return Cut(0, "no collage", 0.0, (), "The clip does not begin with this first frame. Nothing was dropped.")
    # Relative to frame 0, which is the collage as the model's VAE decodes it: softer than what was composed.
    shares = (fine * fine_collage).sum(dim=(1, 2, 3))
    traces = shares / shares[0]
    white = (small_collage > WHITE_LEVEL).all(dim=1, keepdim=True)
    whiteness = ((seen > WHITE_LEVEL).all(dim=1, keepdim=True) & white).sum(dim=(1, 2, 3)) / white.sum().clamp_min(1)

    # A short clip has no frames beyond the longest trim: then its last quarter must do.
    settled = min(max_trim + 1, seen.shape[0] - max(seen.shape[0] // 4, 1))
    usual = traces[settled:].median()
    spread = (traces[settled:] - usual).abs().median()
    if usual > LEAST_COLLAGE:
        return Cut(
            COLLAGE_FRAMES,
            "no cut",
            min(float(usual), 1.0),
            tuple(traces.tolist()),
            f"No cut found: the collage never goes. Dropped the first {COLLAGE_FRAMES} frames all the same.",
        )
    traces = traces - usual
    shown = tuple(traces.tolist())
    # At most half of the least share of frame 0, however noisy the settled frames are.
    is_collage = traces > min(max(TRACE, NOISE_FACTOR * float(spread)), LEAST_COLLAGE / 2)
    is_collage |= whiteness - whiteness[settled:].median() > WHITE_SHARE
    # Frame 0 is collage, and the settled frames mostly are not.
    index = next(t for t in range(1, len(shown) + 1) if not is_collage[t : t + CLEAN_RUN].any())
    if index > max_trim:
        return Cut(
            COLLAGE_FRAMES,
            "no cut",
            min(shown[max_trim], 1.0),
            shown,
            f"No cut found up to frame {max_trim}. Dropped the first {COLLAGE_FRAMES} frames all the same.",
        )
    leak = max(0.0, min(float(traces[index:].max()), 1.0))
    message = f"The shot begins at frame {index}: dropped the {index} before it."
    if is_collage[index:].any():
        again = index + int(is_collage[index:].nonzero().min())
        message += f" Something like the collage shows again at frame {again}: look at it."
    return Cut(index, "found", leak, shown, message)


def _check_frames(frames: torch.Tensor) -> None:
    """Raise unless this is a clip."""
    if frames.ndim != 4 or frames.shape[0] < 1 or frames.shape[-1] != 3:
        raise FirstFrameError(f"Frames must be RGB [frames, height, width, 3], not {list(frames.shape)}.")


def _small(frames: torch.Tensor) -> torch.Tensor:
    """Frames [T, H, W, 3] as [T, 3, 90, 160] fp32 on the CPU, one at a time so that a long clip needs no copy."""
    return torch.cat(
        [
            F.interpolate(frame[None].to("cpu", torch.float32).movedim(-1, 1), size=WORKING_SIZE, mode="area")
            for frame in frames
        ]
    )


def _fine(frames: torch.Tensor) -> torch.Tensor:
    """What is left of frames without their blur: less alike by chance than pictures are."""
    padded = F.pad(frames, (2, 2, 2, 2), mode="replicate")
    return frames - F.avg_pool2d(padded, kernel_size=5, stride=1)
