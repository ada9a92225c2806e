"""The first-frame engine: the references of a shot are laid out on one picture, and the shot is filmed from it (FFGo).

An image-to-video model that keeps its first frame in view can cut away from it and use what it shows; a small adapter
and a trigger sentence make it do so every time (2511.15700). A shot becomes latents in five steps, all in
`FirstFrameEngine.film`: plan its length, encode its prompt, condition on the picture, denoise the whole shot at once,
and find where the collage ends. What lies before is the take's lead: it stays in the latents, as the VAE decodes from
there, and is trimmed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..film.first_frame import (
    COLLAGE_FRAMES,
    MAX_REFERENCES,
    Cut,
    Described,
    FirstFrameError,
    FirstFramePrompt,
    LayoutKind,
    Reference,
    build_prompt,
    check_pair,
    compose,
    find_cut,
)
from ..film.reel.groups import TransitionGroup
from ..film.reel.reel import Reel
from ..film.reel.takes import ShotPlan, plan_shot
from ..film.storyboard.shot import Shot
from ..host.adapters.first_frame import expert_on
from ..host.files.pictures import PLATE, load_cut_out, load_picture
from ..host.progress import Progress
from ..host.sampling import Stage, stages_by_boundary
from ..host.wan.first_frame import kind_of, sample_clip, start_from
from .engine import Capabilities, EngineBase, EngineError, ShotInputs, share_of

__all__ = ["FirstFrameEngine", "ShotCast", "Transition"]

Transition = Literal["auto", "fixed", "two latents"]
LEADS: dict[Transition, int] = {"fixed": COLLAGE_FRAMES, "two latents": COLLAGE_FRAMES + 1, "auto": 2 * COLLAGE_FRAMES}
"""Frames filmed on top of a shot's length, for the transition. "auto" has room for a cut later than the published one;
a shot that cuts later still is shorter than planned, and the next one makes up for it.
"""
LATEST_CUT = 24
LOOK_AHEAD = 13
"""Frames after the latest cut that finding it needs."""


@dataclass(frozen=True, eq=False)
class ShotCast:
    """What a shot's first frame is composed of, each picture loaded once, and the prompt that names it.

    plate: the background [1, H, W, 3] in 0..1, if any.
    """

    references: tuple[Reference, ...]
    plate: Tensor | None
    prompt: FirstFramePrompt


@dataclass(frozen=True, eq=False)
class FirstFrameEngine(EngineBase):
    """A way to film: denoised how, with which cast.

    models: one that films alone, or a pair of experts, high noise first; boundary: noise level from which on the second
    takes over. step_count, cfg, sampler, scheduler: as KSampler has them. cast: references that shots may name; plate:
    the background where a shot names none. layout_kind: how they are laid out. trigger: first words of every prompt;
    where it is empty, prompts are used as they are written.
    """

    step_count: int
    cfg: float
    sampler: str
    scheduler: str
    negative: str
    trigger: str
    boundary: float = 0.9
    cast: tuple[Reference, ...] = ()
    plate: Tensor | None = None
    layout_kind: LayoutKind = "auto"
    transition: Transition = "auto"

    name: ClassVar[str] = "first frame"

    # What the engine is

    @property
    def capabilities(self) -> Capabilities:
        """Every shot begins with a first frame of its own, so none continues another."""
        return Capabilities(continues=False, references=MAX_REFERENCES, prompts_per_shot=1, start_image=True)

    @property
    def lead(self) -> int:
        """Every take begins with what is trimmed."""
        return LEADS[self.transition]

    def _memory_layout(self) -> dict[str, Any]:
        return {"first_frame": {}}

    def _settings(self) -> dict[str, Any]:
        return {
            "steps": self.step_count,
            "cfg": self.cfg,
            "sampler": self.sampler,
            "scheduler": self.scheduler,
            "boundary": self.boundary if len(self.models) > 1 else None,
            "negative": self.negative,
            "trigger": self.trigger,
            "cast": [[reference.name, reference.description] for reference in self.cast],
            "transition": self.transition,
        }

    def steps(self, plan: ShotPlan) -> int:
        """Denoising steps: a whole shot is denoised at once, however long it is."""
        return self.step_count

    def _fewer_steps(self, share: float) -> dict[str, Any]:
        return {"step_count": share_of(self.step_count, share)}

    def _join(self, fingerprints: Sequence[str]) -> str:
        if len(fingerprints) == 1:
            return fingerprints[0]
        return hashlib.sha256("".join(fingerprints).encode()).hexdigest()

    @cached_property
    def _stages(self) -> tuple[Stage, ...]:
        return stages_by_boundary(self.models, self.scheduler, self.step_count, self.boundary)

    # What it refuses before a GPU starts

    def check(self) -> None:
        """Refuse models and settings that cannot film.

        Raises EngineError, FirstFrameError, UnsupportedModelError, UnsupportedVaeError or the text encoder's own error
        for `negative`, ValueErrors of one sentence.
        """
        kinds = {kind_of(model) for model in self.models}
        self.check_models()
        self.clip.tokenize(self.negative)
        if len(self.models) == 1:
            return
        if kinds != {"concat"}:
            raise EngineError("Only image-to-video models come as a pair of experts: disconnect the low-noise model.")
        high, low = self.models
        if faults := check_pair(expert_on(high), expert_on(low)):
            raise EngineError(" ".join(faults))
        if not 0 < self._stages[0].last < self.step_count:
            idle = "high" if self._stages[0].last == 0 else "low"
            raise EngineError(
                f"None of {self.step_count} steps is left to the {idle}-noise model: set more steps, or the shift "
                "and boundary that the models were made for."
            )

    def shot_inputs(self, shot: Shot, given: Tensor | None = None) -> ShotInputs:
        """Its first frame [1, H, W, 3] in the film's size: the one given, or its cast, composed. See EngineBase.

        Raises FirstFrameError, too.
        """
        if shot.start != "cut":
            raise EngineError("A shot with a first frame of its own cannot continue another: set its start to cut.")
        if len(shot.prompts) > 1:
            raise EngineError(
                "A shot filmed from a first frame has one prompt: put the others into shots of their own."
            )
        if given is not None and shot.references:
            raise EngineError("The shot has references and a first frame too: remove one of the two.")
        if given is not None and given.shape != (1, self.height, self.width, 3):
            raise EngineError(
                f"The first frame is {given.shape[-2]} x {given.shape[-3]} and the film {self.width} x "
                f"{self.height}: compose it in the film's size, else references are cropped."
            )
        cast = self.cast_of(shot)
        self.clip.tokenize(cast.prompt.text)
        if given is not None:
            return ShotInputs(given, cast.prompt.text, cast.prompt.warnings)
        if not cast.references:
            raise EngineError("The shot has no references: name some, connect a cast, or give it a first frame.")
        composed = compose(cast.references, cast.plate, self.layout_kind, (self.width, self.height))
        return ShotInputs(composed.picture, cast.prompt.text, (*composed.warnings, *cast.prompt.warnings))

    def cast_of(self, shot: Shot) -> ShotCast:
        """Whom and what a shot shows: the references it names, from the cast or the input folder, or the whole cast."""
        names = [name for name in shot.references if not name.startswith(PLATE)]
        plates = [name.removeprefix(PLATE) for name in shot.references if name.startswith(PLATE)]
        if len(plates) > 1:
            raise FirstFrameError(f"A shot has one background plate and this has {len(plates)}: keep one.")
        known = {reference.name.casefold(): reference for reference in self.cast}
        named = tuple(known.get(name.casefold()) or self._from_file(name) for name in names)
        references = named or self.cast
        text = shot.prompts[0].text
        prompt = FirstFramePrompt(text)
        if self.trigger.strip():
            described = [Described(reference.name, reference.description) for reference in references]
            prompt = build_prompt(text, described, trigger=self.trigger)
        return ShotCast(references, load_picture(plates[0]) if plates else self.plate, prompt)

    def _from_file(self, name: str) -> Reference:
        try:
            cut_out = load_cut_out(name)
        except ValueError as error:
            cast = ", ".join(reference.name for reference in self.cast if reference.name) or "nobody"
            raise EngineError(f"No reference is called {name!r} (in the cast: {cast}). {error}") from error
        return Reference.from_image(cut_out, name=name.rpartition("/")[2].rpartition(".")[0])

    # Filming

    def film(self, shot: Shot, reel: Reel, report: Progress, inputs: ShotInputs) -> Reel:
        """Film one shot after those on the reel; see EngineBase."""
        plan = plan_shot(reel.shots, shot, self.clock)
        first_frame = inputs.picture
        assert first_frame is not None
        start = start_from(
            kind_of(self.models[0]),
            first_frame,
            self.vae,
            self.encode_prompt(inputs.prompt),
            self.encode_prompt(self.negative),
            (self.width, self.height),
            self.clock.frames(plan.latent_frames),
        )
        latents = sample_clip(
            self._stages,
            start,
            seed=shot.seed,
            steps=self.step_count,
            cfg=self.cfg,
            sampler=self.sampler,
            scheduler=self.scheduler,
            on_step=report.step,
        )
        cut = self._cut(latents, first_frame)
        logging.info("Longreel: %s", cut.message)
        return self._filmed(
            reel,
            shot,
            plan,
            inputs,
            latents,
            frames=min(plan.frames, self.clock.frames(plan.latent_frames) - cut.index),
            meta={TransitionGroup.NAME: {"lead": cut.index, "status": cut.status, "message": cut.message}},
        )

    def _cut(self, latents: Tensor, first_frame: Tensor) -> Cut:
        """Where the shot begins in what was filmed."""
        if self.transition != "auto":
            count = LEADS[self.transition]
            return Cut(count, "fixed", 0.0, (), f"Dropped the first {count} frames without looking at them.")
        needed = self.clock.latent_frames(LATEST_CUT + LOOK_AHEAD)
        frames = torch.cat(list(self.family.decoder().decode(latents[:, :, :needed])))
        return find_cut(frames, first_frame, min(LATEST_CUT, self.clock.frames(latents.shape[2]) - 1))
