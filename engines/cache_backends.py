"""What a model is told of the two caches, one way for each kind of weights.

A backend only maps caches to conditioning, number of latent frames and frames to trim; filming is cache_guided.py's.
Where ComfyUI has a node for the weights, the conditioning is the one that node makes for the same pictures.
Source: shared/research/filmweaver.md 2.1, 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import comfy.latent_formats
import torch
from comfy.latent_formats import LatentFormat
from comfy.ldm.wan.model import VaceWanModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_extras.nodes_wan import WanVaceToVideo
from node_helpers import conditioning_set_values
from torch import Tensor

from ..film.cache import FILMWEAVER, CacheNoise, Keyframe, LayoutProfile, StoryCache, build_payload, check_profile
from ..host.cache_tokens import PLAIN, check_model, installed_profile, with_payload
from ..host.chunk import Conditioned
from .filming import EngineError

__all__ = ["BACKENDS", "Backend", "Bernini", "FilmWeaver", "Phantom", "Scene", "Vace", "make_backend"]

Conditioning = list[Any]


@dataclass(frozen=True, eq=False)
class Scene:
    """What there is to tell.

    positive, negative: encoded text. cache: its history is the temporal cache. keyframes: as retrieved, best first.
    frames: latent frames to film. size: width and height in pixels.
    """

    positive: Conditioning
    negative: Conditioning
    cache: StoryCache
    keyframes: Sequence[Keyframe]
    frames: int
    size: tuple[int, int]
    vae: VAE
    latent_format: LatentFormat
    noise: CacheNoise
    noise_seed: int

    def pictures(self) -> list[Tensor]:
        """The keyframes' latents, each [1, C, 1, h, w] fp32 in LATENT space."""
        return [self.latent_format.process_out(keyframe.latent[None].float()) for keyframe in self.keyframes]


class Backend(Protocol):
    """One kind of weights.

    name: in the node. chunk: latent frames at once, 0 for a whole shot. keyframes: at most. moves: it goes on with what
    was filmed before, so a shot can continue another or a picture.
    """

    @property
    def name(self) -> str: ...
    @property
    def chunk(self) -> int: ...
    @property
    def keyframes(self) -> int: ...
    @property
    def moves(self) -> bool: ...

    def check(self, models: Sequence[ModelPatcher]) -> None:
        """Raise a ValueError of one sentence for models it cannot tell."""

    def condition(self, scene: Scene) -> Conditioned:
        """The conditioning of one chunk."""


@dataclass(frozen=True)
class FilmWeaver:
    """Cache tokens, for weights trained with them (a LoRA of our trainer, by FilmWeaver LoRA Loader)."""

    profile: LayoutProfile = FILMWEAVER
    name = "filmweaver"
    moves = True

    @property
    def chunk(self) -> int:
        return self.profile.chunk

    @property
    def keyframes(self) -> int:
        return self.profile.keyframes

    def check(self, models: Sequence[ModelPatcher]) -> None:
        """Every model must be installed for this profile."""
        for model in models:
            profile = installed_profile(model)
            if profile is None:
                raise EngineError(
                    "The filmweaver backend needs a model that was trained with caches: put FilmWeaver LoRA Loader "
                    "before the engine, or choose the bernini backend."
                )
            check_profile(profile, self.profile)
            check_model(model, profile)

    def condition(self, scene: Scene) -> Conditioned:
        """One payload for both prompts."""
        payload = build_payload(scene.cache, scene.keyframes, scene.noise, scene.noise_seed)
        return Conditioned(with_payload(scene.positive, payload), with_payload(scene.negative, payload), scene.frames)


@dataclass(frozen=True)
class Bernini:
    """Keyframes as references in context, for Bernini-R's weights as they are; no memory of motion."""

    name = "bernini"
    chunk = 0
    keyframes = 8
    moves = False

    def check(self, models: Sequence[ModelPatcher]) -> None:
        """Context latents are read by Wan's own forward pass."""
        _check_class(models, PLAIN, "wan2.2_bernini_r_*")

    def condition(self, scene: Scene) -> Conditioned:
        """As core's Bernini Conditioning makes it of reference images of the film's size."""
        context = scene.pictures()
        if not context:
            return Conditioned(scene.positive, scene.negative, scene.frames)
        values = {"context_latents": context}
        positive, negative = (conditioning_set_values(text, values) for text in (scene.positive, scene.negative))
        return Conditioned(positive, negative, scene.frames)


@dataclass(frozen=True)
class Phantom:
    """Keyframes as subjects behind the video, for Phantom-Wan's weights; text and pictures are guided apart."""

    name = "phantom"
    chunk = 0
    keyframes = 4
    moves = False

    def check(self, models: Sequence[ModelPatcher]) -> None:
        """Time concatenation is read by Wan's own forward pass."""
        _check_class(models, PLAIN, "Phantom-Wan")

    def condition(self, scene: Scene) -> Conditioned:
        """As core's Wan Phantom Subject To Video makes it of pictures of the film's size."""
        pictures = scene.pictures()
        if not pictures:
            return Conditioned(scene.positive, scene.negative, scene.frames)
        subjects = torch.cat(pictures, dim=2)
        nobody = comfy.latent_formats.Wan21().process_out(torch.zeros_like(subjects))
        return Conditioned(
            positive=conditioning_set_values(scene.positive, {"time_dim_concat": subjects}),
            middle=conditioning_set_values(scene.negative, {"time_dim_concat": subjects}),
            negative=conditioning_set_values(scene.negative, {"time_dim_concat": nobody}),
            frames=scene.frames,
        )


@dataclass(frozen=True)
class Vace:
    """The best keyframe as reference picture and the frames before as known ones, for VACE's weights."""

    name = "vace"
    chunk = 20
    keyframes = 1
    moves = True

    def check(self, models: Sequence[ModelPatcher]) -> None:
        """The control branch must be there."""
        _check_class(models, (VaceWanModel,), "wan2.1_vace_14B")

    def condition(self, scene: Scene) -> Conditioned:
        """As core's Wan Vace To Video makes it; the known frames are sampled again and trimmed."""
        width, height = scene.size
        history = scene.cache.history
        known = 0 if history is None else min(history.shape[1], _VACE_HISTORY)
        length = 4 * (known + scene.frames - 1) + 1
        video = masks = None
        if history is not None and known:
            tail = scene.latent_format.process_out(history[None, :, -known:])
            seen = scene.vae.decode(tail)[0].float().cpu()
            video = torch.full((length, height, width, 3), 0.5)
            video[: seen.shape[0]] = seen
            masks = torch.ones(length, height, width)
            masks[: seen.shape[0]] = 0
        reference = scene.keyframes[0].picture.image()[None] if scene.keyframes else None
        positive, negative, latent, trim = WanVaceToVideo.execute(
            scene.positive, scene.negative, scene.vae, width, height, length, 1, 1.0, video, masks, reference
        ).result
        return Conditioned(positive, negative, latent["samples"].shape[2], trim=trim + known)


# Two latent frames, five pictures: what VACE is commonly extended by.
_VACE_HISTORY = 2

BACKENDS = ("filmweaver", "bernini", "phantom", "vace")
"""Names for the node, the recommended first."""


def make_backend(name: str, model: ModelPatcher) -> Backend:
    """The backend of that name; filmweaver takes the profile that the model was installed with."""
    if name == "filmweaver":
        return FilmWeaver(installed_profile(model) or FILMWEAVER)
    made: dict[str, Backend] = {"bernini": Bernini(), "phantom": Phantom(), "vace": Vace()}
    return made[name]


def _check_class(models: Sequence[ModelPatcher], wanted: Sequence[type], weights: str) -> None:
    for model in models:
        dit = type(getattr(model.model, "diffusion_model", None))
        if dit not in wanted:
            raise EngineError(f"This backend cannot film with {dit.__name__}: load {weights}.")
