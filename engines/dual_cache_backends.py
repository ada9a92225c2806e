"""How the two caches condition a model, one way for each kind of weights.

A backend only maps caches to conditioning, number of latent frames and frames to trim; filming is cache_guided.py's.
Where ComfyUI has a node for the weights, the conditioning is the one that node makes for the same pictures. Source:
docs/methods/filmweaver.md, other weights in the same engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from node_helpers import conditioning_set_values

from ..film.dual_cache import FILMWEAVER, LayoutProfile, build_payload, check_profile
from ..host.sampling import Conditioned
from ..host.wan.cache_tokens import check_model, installed_profile, with_payload
from ..host.wan.conditioning import (
    blank_latents,
    check_image_to_video,
    check_plain,
    check_vace,
    image_to_video,
    vace_to_video,
)
from .dual_cache_inputs import Backend, ChunkInputs
from .engine import EngineError

__all__ = ["BACKENDS", "Bernini", "FilmWeaver", "Phantom", "StoryMem", "Svi", "Vace", "make_backend"]


_IMAGE_TO_VIDEO = "wan2.2_i2v_high_noise_14B and wan2.2_i2v_low_noise_14B"


@dataclass(frozen=True)
class FilmWeaver:
    """Cache tokens, for weights trained with them (a LoRA of our trainer, by FilmWeaver LoRA Loader)."""

    profile: LayoutProfile = FILMWEAVER
    name = "filmweaver"
    supports_continuation = True
    supports_empty_history = True

    @property
    def max_chunk(self) -> int:
        return self.profile.chunk

    @property
    def fixed_chunk(self) -> int:
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

    def condition(self, inputs: ChunkInputs) -> Conditioned:
        """The prompt with both caches; keyframes guide apart from the text, the frames before are known to all."""
        payload = build_payload(inputs.cache, inputs.keyframes, inputs.noise, inputs.noise_seed)
        positive = with_payload(inputs.positive, payload)
        if not inputs.keyframes:
            return Conditioned(positive, with_payload(inputs.negative, payload), inputs.frames)
        before = build_payload(inputs.cache, (), inputs.noise, inputs.noise_seed)
        return Conditioned(
            positive=positive,
            middle=with_payload(inputs.positive, before),
            negative=with_payload(inputs.negative, before),
            text_first=True,
            frames=inputs.frames,
        )


@dataclass(frozen=True)
class Bernini:
    """Keyframes as references in context, for Bernini-R's weights as they are; no memory of motion."""

    name = "bernini"
    fixed_chunk = 0
    max_chunk = 0
    keyframes = 8
    supports_continuation = False
    supports_empty_history = True

    def check(self, models: Sequence[ModelPatcher]) -> None:
        """Context latents are read by Wan's own forward pass."""
        check_plain(models, "wan2.2_bernini_r_*")

    def condition(self, inputs: ChunkInputs) -> Conditioned:
        """As core's Bernini Conditioning makes it of reference images of the film's size."""
        context = inputs.keyframe_latents()
        if not context:
            return Conditioned(inputs.positive, inputs.negative, inputs.frames)
        values = {"context_latents": context}
        positive, negative = (conditioning_set_values(text, values) for text in (inputs.positive, inputs.negative))
        return Conditioned(positive, negative, inputs.frames)


@dataclass(frozen=True)
class Phantom:
    """Keyframes as subjects behind the video, for Phantom-Wan's weights; text and pictures are guided apart."""

    name = "phantom"
    fixed_chunk = 0
    max_chunk = 0
    keyframes = 4
    supports_continuation = False
    supports_empty_history = True

    def check(self, models: Sequence[ModelPatcher]) -> None:
        """Time concatenation is read by Wan's own forward pass."""
        check_plain(models, "Phantom-Wan")

    def condition(self, inputs: ChunkInputs) -> Conditioned:
        """As core's Wan Phantom Subject To Video makes it of pictures of the film's size."""
        pictures = inputs.keyframe_latents()
        if not pictures:
            return Conditioned(inputs.positive, inputs.negative, inputs.frames)
        subjects = torch.cat(pictures, dim=2)
        nobody = blank_latents(subjects)
        return Conditioned(
            positive=conditioning_set_values(inputs.positive, {"time_dim_concat": subjects}),
            middle=conditioning_set_values(inputs.negative, {"time_dim_concat": subjects}),
            negative=conditioning_set_values(inputs.negative, {"time_dim_concat": nobody}),
            frames=inputs.frames,
        )


@dataclass(frozen=True)
class Vace:
    """The best keyframe as reference picture and the frames before as known ones, for VACE's weights."""

    name = "vace"
    fixed_chunk = 0
    max_chunk = 21
    keyframes = 1
    supports_continuation = True
    supports_empty_history = True

    def check(self, models: Sequence[ModelPatcher]) -> None:
        """The control branch must be there."""
        check_vace(models, "wan2.1_vace_14B")

    def condition(self, inputs: ChunkInputs) -> Conditioned:
        """As core's Wan Vace To Video makes it; the known frames are sampled again and trimmed."""
        width, height = inputs.size
        overlap = inputs.overlap_frames()
        known = inputs.overlap(overlap)
        length = inputs.clock.frames(known + inputs.frames)
        video = masks = None
        if overlap is not None:
            video = torch.full((length, height, width, 3), 0.5)
            video[: overlap.shape[0]] = overlap
            masks = torch.ones(length, height, width)
            masks[: overlap.shape[0]] = 0
        reference = inputs.keyframes[0].picture.image()[None] if inputs.keyframes else None
        positive, negative, frames, trim = vace_to_video(
            inputs.positive, inputs.negative, inputs.vae, inputs.size, length, video, masks, reference
        )
        return Conditioned(positive, negative, frames, trim=trim + known)


@dataclass(frozen=True)
class StoryMem:
    """Keyframes as memories before the clip, for Wan 2.2 I2V A14B with StoryMem's LoRA pair.

    A cut is conditioned on the memories alone (M2V; MR2V where they are a user's pictures), a picture to start from is
    the first frame (MI2V), and a take goes on from its last five pictures (MM2V). Source: docs/decisions.md, StoryMem.
    """

    name = "storymem"
    fixed_chunk = 0
    max_chunk = 21
    keyframes = 10
    supports_continuation = True
    supports_empty_history = False

    def check(self, models: Sequence[ModelPatcher]) -> None:
        """The frame's own input channels must be there."""
        check_image_to_video(models, _IMAGE_TO_VIDEO)

    def condition(self, inputs: ChunkInputs) -> Conditioned:
        """Memories, each encoded alone, before what core's Wan Image To Video makes of the known pictures.

        The unknown ones are mid-grey, encoded with the known; without any the whole clip is. Memories are known.
        """
        width, height = inputs.size
        overlap = inputs.overlap_frames()
        known = inputs.overlap(overlap)
        length = inputs.clock.frames(known + inputs.frames)
        grey = torch.full((1, height, width, 3), 0.5)
        start = grey if overlap is None else overlap
        clip, unknown = image_to_video(inputs.positive, inputs.vae, inputs.size, length, start)
        if overlap is None:
            unknown = torch.ones_like(unknown)
        memories = inputs.keyframe_latents_in_time()
        values = {
            "concat_latent_image": torch.cat([*(memory.to(clip) for memory in memories), clip], dim=2),
            "concat_mask": torch.cat([torch.zeros_like(unknown[:, :, :1])] * len(memories) + [unknown], dim=2),
        }
        positive, negative = (conditioning_set_values(text, values) for text in (inputs.positive, inputs.negative))
        trim = len(memories) + known
        return Conditioned(positive, negative, trim + inputs.frames, trim=trim)


@dataclass(frozen=True)
class Svi:
    """The take's first frame as anchor and its newest latent frame, for Wan 2.2 I2V A14B with SVI 2.0 Pro's LoRA pair.

    A cut without a picture of its own starts from the keyframe that its prompt calls for. Source: docs/decisions.md,
    SVI 2.0 Pro.
    """

    name = "svi"
    fixed_chunk = 0
    max_chunk = 21
    keyframes = 1
    supports_continuation = True
    supports_empty_history = False

    def check(self, models: Sequence[ModelPatcher]) -> None:
        """The frame's own input channels must be there."""
        check_image_to_video(models, _IMAGE_TO_VIDEO)

    def condition(self, inputs: ChunkInputs) -> Conditioned:
        """Anchor, newest latent frame, zeros of the model's own space; only the anchor is marked as known.

        What comes first is the anchor and the newest frame filmed again: both are trimmed.
        """
        history = inputs.cache.history
        anchor = inputs.anchor if inputs.anchor is not None else inputs.keyframe_latents()[0]
        known = [inputs.latent_format.process_in(anchor)]
        if history is not None and history.shape[1] > 1:
            known.append(history[None, :, -1:])
        trim = 0 if history is None else len(known)
        frames = trim + inputs.frames
        clip = torch.zeros(1, anchor.shape[1], frames, *anchor.shape[3:])
        clip[:, :, : len(known)] = torch.cat(known, dim=2)
        unknown = torch.ones(1, 1, frames, *anchor.shape[3:])
        unknown[:, :, :1] = 0
        values = {"concat_latent_image": inputs.latent_format.process_out(clip), "concat_mask": unknown}
        positive, negative = (conditioning_set_values(text, values) for text in (inputs.positive, inputs.negative))
        return Conditioned(positive, negative, frames, trim=trim)


BACKENDS = ("filmweaver", "bernini", "phantom", "vace", "storymem", "svi")
"""Names for the node, the recommended first."""


def make_backend(name: str, model: ModelPatcher) -> Backend:
    """The backend of that name; filmweaver takes the profile that the model was installed with."""
    if name == "filmweaver":
        return FilmWeaver(installed_profile(model) or FILMWEAVER)
    made: dict[str, Backend] = {one.name: one for one in (Bernini(), Phantom(), Vace(), StoryMem(), Svi())}
    return made[name]
