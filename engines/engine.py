"""What every engine is: models, a frame size and rate, and what of them a reel must share to be continued.

An engine is `EngineBase` and its difference: what it can do (`capabilities`), the settings that decide how its shots
look, which shots it refuses, and `film`. Nodes and filming.py depend only on the protocol `Engine`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

from comfy.latent_formats import LatentFormat
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor
from typing_extensions import Self

from ..film.reel.groups import GroupTensors
from ..film.reel.reel import FOLLOWS, FilmedShot, Reel, ReelLayout
from ..film.reel.takes import FrameGrid, ShotPlan
from ..film.storyboard.shot import Shot
from ..host.families import Family, of, of_vae
from ..host.files.paths import spill_folder
from ..host.model_fingerprint import fingerprint_clip, fingerprint_image, fingerprint_model, fingerprint_vae
from ..host.progress import Previewer, Progress, film_previewer
from ..host.wan.joint_latent import joint_of
from ..host.wan.other_nodes import patch_fault

__all__ = ["Capabilities", "EditKind", "Engine", "EngineBase", "EngineError", "ShotInputs", "share_of"]

EditKind = Literal["kv_bank", "keyframes"]
"""What a user can edit of an engine's memory: frames of a KV memory bank, keyframes of a shot cache."""


class EngineError(ValueError):
    """An engine, or a shot for it, that cannot film; the message is one sentence that says what to change."""


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do, for nodes and user interfaces.

    continues: a shot can go on from the last frames of the one before. references: pictures that a shot may refer to,
    at most. prompts_per_shot: at most, None for any number. start_image: a shot can be given its first frame. edits:
    what can be edited of its memory.
    """

    continues: bool
    references: int
    prompts_per_shot: int | None
    start_image: bool
    edits: tuple[EditKind, ...] = ()


@dataclass(frozen=True, eq=False)
class ShotInputs:
    """What a shot is filmed from beside itself, loaded and checked.

    picture: [n, H, W, 3] in 0..1, its first frame or its references, part of its fingerprint; None where there is none.
    prompt: what the text encoder reads, where that is not the shot's own text. warnings: of what was made of them, a
    sentence each.
    """

    picture: Tensor | None = None
    prompt: str = ""
    warnings: tuple[str, ...] = ()


class Engine(Protocol):
    """What filming and editing need of an engine; see EngineBase for the meaning of each."""

    @property
    def capabilities(self) -> Capabilities: ...
    @property
    def clock(self) -> FrameGrid: ...
    def layout(self) -> ReelLayout: ...
    def settings(self, picture: Tensor | None = None) -> dict[str, Any]: ...
    def steps(self, plan: ShotPlan) -> int: ...
    def memory_bytes(self, latent_frames: int) -> int | None: ...
    def get_models(self) -> list[ModelPatcher]: ...
    def rehearsal(self, size: float, steps: float) -> Self: ...
    def previewer(self) -> Previewer: ...
    def encode_frames(self, frames: Tensor) -> Tensor: ...
    def shot_inputs(self, shot: Shot, given: Tensor | None = None) -> ShotInputs: ...
    def film(self, shot: Shot, reel: Reel, report: Progress, inputs: ShotInputs) -> Reel: ...


@dataclass(frozen=True, eq=False)
class EngineBase(ABC):
    """A way to film: which models, at which size and rate.

    models: one, or the high-noise and the low-noise expert that share the steps. width, height: pixels, multiples of
    `cell`. fps: frames a second.
    """

    models: tuple[ModelPatcher, ...]
    clip: CLIP
    vae: VAE
    width: int
    height: int
    fps: float

    name: ClassVar[str]
    """In settings, so it is part of every fingerprint."""

    # What the engine is

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What it can do."""

    @property
    def block(self) -> int:
        """Latent frames that are filmed together; a shot is whole blocks."""
        return 1

    @property
    def lead(self) -> int:
        """Frames at the beginning of each take that are filmed and trimmed."""
        return 0

    @property
    def family(self) -> Family:
        """What the models' family differs in."""
        return of_vae(self.vae)

    @property
    def clock(self) -> FrameGrid:
        """How this engine counts time."""
        return self.family.latents.grid(self.fps, self.block, self.lead)

    @property
    def cell(self) -> int:
        """Pixels to a side of one token: width and height are multiples of it."""
        return self.family.cell(self.models[0])

    @property
    def latent_format(self) -> LatentFormat:
        """Between LATENT and the model's own space."""
        return self.models[0].model.latent_format

    def latent_shape(self, frames: int) -> tuple[int, int, int, int, int]:
        """[1, C, frames, h, w] of so many latent frames of the film."""
        return self.family.latents.shape(frames, self.width, self.height)

    def get_models(self) -> list[ModelPatcher]:
        """ComfyUI asks this of values that hold models, so that it does not unload them in the middle of a film."""
        return [*self.models, self.clip.patcher, self.vae.patcher]

    def layout(self) -> ReelLayout:
        """What a reel must have in common with this engine to be continued by it."""
        latents = self.family.latents
        return ReelLayout(
            fps=self.fps,
            width=self.width,
            height=self.height,
            latent_channels=latents.channels,
            spatial_compression=latents.spatial,
            temporal_compression=latents.temporal,
            family=latents.family,
            model=self.fingerprints["model"],
            vae=self.fingerprints["vae"],
            engine=self._memory_layout(),
        )

    def settings(self, picture: Tensor | None = None) -> dict[str, Any]:
        """Everything but the shot itself that decides how it looks, JSON-able. picture: of its inputs."""
        size = {"width": self.width, "height": self.height, "fps": self.fps}
        settings = {"engine": self.name, **self.fingerprints, **size, **self._settings()}
        return settings if picture is None else {**settings, "picture": fingerprint_image(picture)}

    def previewer(self) -> Previewer:
        """Makes a picture of what was filmed last."""
        return film_previewer(self.models[0], self.vae)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of the models, by what they are."""
        return self._fingerprints()

    def _fingerprints(self) -> dict[str, str]:
        return {
            "model": self._join([fingerprint_model(model) for model in self.models]),
            "clip": fingerprint_clip(self.clip),
            "vae": fingerprint_vae(self.vae),
        }

    def memory_bytes(self, latent_frames: int) -> int | None:
        """Bytes that what it remembers takes on the device while it films, beside the weights; None: not known.

        latent_frames: of the whole film.
        """
        return None

    @abstractmethod
    def steps(self, plan: ShotPlan) -> int:
        """Steps of the progress bar that a shot costs."""

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """The part of `settings` that is this engine's own."""

    def _memory_layout(self) -> dict[str, Any]:
        """ReelLayout.engine: the layout of what this engine keeps on a reel, by its name. Without any, nothing is."""
        return {}

    def _join(self, fingerprints: Sequence[str]) -> str:
        """The fingerprint of several models in a row; of one, its own."""
        return " ".join(fingerprints)

    # For a rehearsal

    def rehearsal(self, size: float, steps: float) -> Self:
        """This engine for a rehearsal: the same films, smaller and with fewer steps.

        size: of width and height, steps: of the denoising steps, each a share in 0..1. Both are part of a shot's
        fingerprint, so a take of a rehearsal is never one of the film. Raises what `check` raises.
        """
        width, height = (share_of(pixels // self.cell, size) * self.cell for pixels in (self.width, self.height))
        smaller = replace(self, width=width, height=height, **self._fewer_steps(steps))
        smaller.check()
        return smaller

    def _fewer_steps(self, share: float) -> dict[str, Any]:
        """The fields in which this engine differs from one with that share of its steps; none: it keeps all of them."""
        return {}

    # What it refuses before a GPU starts

    def check(self) -> None:
        """Refuse models and settings that cannot film. Raises ValueErrors of one sentence."""
        self.check_models()

    def check_models(self) -> None:
        """Refuse a VAE, or a size, that does not fit the models, and models that return more than a video's latents or
        carry patches that change nothing.

        Raises UnsupportedVaeError or EngineError, ValueErrors of one sentence.
        """
        for model in self.models:
            of(model, self.vae)
            if fault := patch_fault(model):
                raise EngineError(fault)
            joint = joint_of(model)
            if joint is not None and joint.return_motion:
                raise EngineError(
                    "A reel keeps pictures and no motion: switch off return_motion of Apply Motion Adapter for engines."
                )
        for name, pixels in (("width", self.width), ("height", self.height)):
            if pixels < self.cell or pixels % self.cell:
                near = max(1, round(pixels / self.cell)) * self.cell
                raise EngineError(
                    f"A {name} of {pixels} does not fit this model: set a multiple of {self.cell} such as {near}."
                )

    @abstractmethod
    def shot_inputs(self, shot: Shot, given: Tensor | None = None) -> ShotInputs:
        """What a shot is filmed from, its files read; refuses a shot that this engine cannot film.

        given: a picture [1, H, W, 3] in 0..1 to start from. Raises EngineError, the text encoder's own ValueError, or
        one of a file that cannot be read, each of one sentence.
        """

    # Filming

    @abstractmethod
    def film(self, shot: Shot, reel: Reel, report: Progress, inputs: ShotInputs) -> Reel:
        """Film one shot after those on the reel.

        reel: one that this engine can go on with, see check_layout; it stays good. report: gets every step and what the
        newest frames are. inputs: as from `shot_inputs`. Returns the reel with the shot on it, its tensors in a
        temporary file. Raises TakeError, EngineError, ReelError for a file that is gone, and ComfyUI's
        InterruptProcessingException.
        """

    def _filmed(
        self,
        reel: Reel,
        shot: Shot,
        plan: ShotPlan,
        inputs: ShotInputs,
        latents: Tensor,
        *,
        frames: int | None = None,
        tensors: GroupTensors | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Reel:
        """The reel with the shot on it, its latents and groups in a temporary file. frames: if not as planned."""
        last = reel.last_shot
        filmed = FilmedShot.store(
            shot,
            latents,
            previous=reel.fingerprint,
            settings=self.settings(inputs.picture),
            take_start=plan.take_start,
            frames=plan.frames if frames is None else frames,
            tensors=tensors,
            meta={**(meta or {}), **({FOLLOWS: last.file.uid} if last is not None else {})},
            folder=spill_folder(),
            family=self.family.latents.family,
        )
        return reel.append(filmed)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Frames [n, H, W, 3] in 0..1 of any size as latents [1, C, T, h, w] of this film."""
        return self.family.encode(frames, self.width, self.height)

    def encode_prompt(self, text: str) -> list[Any]:
        """A prompt as ComfyUI's CONDITIONING. Raises EngineError for a text encoder of another model."""
        conditioning: list[Any] = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
        given, wanted = conditioning[0][0].shape[-1], self.family.text_width(self.models[0])
        if given != wanted:
            raise EngineError(
                f"The text encoder gives {given} numbers a word and the model reads {wanted}: "
                "load the text encoder that belongs to the model."
            )
        return conditioning


def share_of(count: int, share: float) -> int:
    """A share (0..1) of a number of things, at least one of them."""
    return max(1, round(count * share))
