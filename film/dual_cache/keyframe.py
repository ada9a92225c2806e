"""Keyframes: the frames kept of a shot, and how they are chosen."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F

from .profile import CacheError

__all__ = [
    "PICTURE_PIXELS",
    "ChoicePolicy",
    "Keyframe",
    "Picture",
    "choose_keyframes",
    "sharpness",
    "spread_frames",
]

PICTURE_PIXELS = 832 * 480
"""Larger pictures are stored scaled down to this many pixels: with chroma at half size, 0.6 MB each at most."""

# JPEG's colour transform (BT.601, full range): rows are Y, Cb, Cr.
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture at 1.5 bytes a pixel. luma: uint8 [H, W]; chroma: uint8 [2, ceil(H / 2), ceil(W / 2)], Cb and Cr.

    Size does not depend on content, unlike a compressed file's, so the bank's limit holds for every film.
    """

    luma: torch.Tensor
    chroma: torch.Tensor

    @classmethod
    def of(cls, image: torch.Tensor) -> Picture:
        """image: [H, W, 3] float 0..1. Scaled down, aspect kept, if it has more than PICTURE_PIXELS."""
        planes = image.detach().to("cpu", torch.float32).clamp(0, 1).movedim(-1, 0)
        height, width = planes.shape[1:]
        scale = math.sqrt(PICTURE_PIXELS / (height * width))
        if scale < 1:
            size = (max(1, int(height * scale)), max(1, int(width * scale)))
            planes = F.interpolate(planes[None], size, mode="area")[0]
        ycc = torch.einsum("oc,chw->ohw", torch.tensor(_TO_YCC), planes)
        chroma = F.avg_pool2d(ycc[None, 1:], 2, ceil_mode=True)[0] + 0.5
        return cls(_bytes(ycc[0]), _bytes(chroma))

    def image(self) -> torch.Tensor:
        """[H, W, 3] float 0..1 on the CPU."""
        size = (self.luma.shape[0], self.luma.shape[1])
        chroma = F.interpolate(self.chroma[None].float() / 255 - 0.5, scale_factor=2.0, mode="bilinear")
        ycc = torch.cat([self.luma[None].float() / 255, chroma[0, :, : size[0], : size[1]]])
        rgb = torch.einsum("oc,chw->ohw", torch.linalg.inv(torch.tensor(_TO_YCC)), ycc)
        return rgb.clamp(0, 1).movedim(0, -1).contiguous()


@dataclass(frozen=True, eq=False)
class Keyframe:
    """A frame kept of a shot, or a user's picture. An immutable value; make one with `Keyframe.of`.

    uid: 16 hex digits of its content and origin, the same whenever the same frame is kept. latent: fp16 [C, 1, h, w] on
    the CPU, encoded alone, in the model's space (after the latent format's process_in). embedding: fp32 [d], CLIP
    image. shot, frame: where it was filmed, from 0; -1 for a user's picture. characters: names of who is in the
    picture. quality: the higher the sharper. pinned: always retrieved. banned: never retrieved. noise_seed: of its
    cache noise.
    """

    uid: str
    picture: Picture
    latent: torch.Tensor
    embedding: torch.Tensor
    shot: int
    frame: int
    characters: tuple[str, ...]
    quality: float
    source: Literal["generated", "user"]
    pinned: bool
    banned: bool
    noise_seed: int

    @classmethod
    def of(
        cls,
        image: torch.Tensor,
        latent: torch.Tensor,
        embedding: torch.Tensor,
        *,
        shot: int = -1,
        frame: int = -1,
        characters: Sequence[str] = (),
        pinned: bool = False,
    ) -> Keyframe:
        """image: [H, W, 3] float 0..1; latent: [C, 1, h, w]; embedding: [d]. Copies all three.

        shot -1 makes it a user's picture. Raises CacheError for a latent of several frames or an embedding that is
        not finite, with which nothing can be ranked.
        """
        if latent.ndim != 4 or latent.shape[1] != 1:
            raise CacheError(f"A keyframe's latent is {list(latent.shape)}: encode one picture alone, [C, 1, h, w].")
        if not bool(torch.isfinite(embedding).all()):
            raise CacheError("A keyframe's CLIP embedding is not finite: run CLIP in fp32 or bf16.")
        kept = latent.detach().to("cpu", torch.float16, copy=True).contiguous()
        vector = embedding.detach().to("cpu", torch.float32, copy=True).contiguous()
        picture = Picture.of(image)
        digest = hashlib.sha256(f"{shot},{frame}".encode("ascii"))
        for tensor in (kept, vector, picture.luma, picture.chroma):
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return cls(
            uid=digest.hexdigest()[:16],
            picture=picture,
            latent=kept,
            embedding=vector,
            shot=shot,
            frame=frame,
            characters=tuple(characters),
            quality=sharpness(image),
            source="user" if shot < 0 else "generated",
            pinned=pinned,
            banned=False,
            # torch takes seeds up to 64 bits, JSON readers are exact up to 53.
            noise_seed=int.from_bytes(digest.digest()[8:14], "big"),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        tensors = (self.picture.luma, self.picture.chroma, self.latent, self.embedding)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def marked(self, *, pinned: bool | None = None, banned: bool | None = None) -> Keyframe:
        """The same keyframe with other marks; None leaves a mark as it is."""
        return replace(
            self,
            pinned=self.pinned if pinned is None else pinned,
            banned=self.banned if banned is None else banned,
        )


@dataclass(frozen=True)
class ChoicePolicy:
    """Which candidates of a shot become keyframes.

    count: at most this many a shot. similarity: a candidate goes whose CLIP cosine with one already kept exceeds this
    (-1..1). sharpness: a candidate goes that is less sharp than this part (0..1) of the sharpest one; relative, since
    absolute sharpness says more about the style than about the frame. Source: docs/methods/filmweaver.md, keyframes.
    """

    count: int = 3
    similarity: float = 0.9
    sharpness: float = 0.3


def spread_frames(frames: int, count: int = 3) -> tuple[int, ...]:
    """Numbers of `count` frames spread evenly from first to last, without repetition: the candidates of a shot."""
    if count == 1 or frames <= 1:
        return (0,)
    return tuple(sorted({round(i * (frames - 1) / (count - 1)) for i in range(count)}))


def sharpness(image: torch.Tensor) -> float:
    """Variance of the Laplacian of the luma in 8-bit units, 0 for a flat picture. image: [H, W, 3] float 0..1."""
    luma = image.detach().to("cpu", torch.float32) @ torch.tensor(_TO_YCC[0]) * 255
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    edges = F.conv2d(F.pad(luma[None, None], (1, 1, 1, 1), mode="replicate"), kernel[None, None])
    return float(edges.var(correction=0))


def choose_keyframes(candidates: Sequence[Keyframe], policy: ChoicePolicy = ChoicePolicy()) -> tuple[Keyframe, ...]:
    """The candidates to keep, in the order given (time): blurred ones are dropped first, then near duplicates.

    Of one candidate or more at least one is kept.
    """
    if not candidates:
        return ()
    floor = policy.sharpness * max(candidate.quality for candidate in candidates)
    kept: list[Keyframe] = []
    for candidate in candidates:
        copied = any(_cosine(candidate, other) > policy.similarity for other in kept)
        if candidate.quality >= floor and not copied and len(kept) < policy.count:
            kept.append(candidate)
    return tuple(kept)


def _cosine(a: Keyframe, b: Keyframe) -> float:
    return float(F.cosine_similarity(a.embedding.double(), b.embedding.double(), dim=0))


def _bytes(plane: torch.Tensor) -> torch.Tensor:
    return (plane * 255).round().clamp(0, 255).to(torch.uint8).contiguous()
