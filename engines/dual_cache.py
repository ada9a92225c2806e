"""The cache-guided engine: a video model films chunk by chunk, conditioned on keyframes of earlier shots and the frames
before.

A shot becomes latents in six steps, all in `CacheGuidedEngine.film`: plan its length, restore the caches from the reel,
encode its prompts, film it chunk by chunk (each with the keyframes its prompt calls for), choose its own keyframes, and
put latents and keyframes on disk as one more shot of the reel. Source: docs/methods/filmweaver.md.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, ClassVar

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..film.dual_cache import (
    FILMWEAVER,
    CacheNoise,
    ChoicePolicy,
    Keyframe,
    Retrieval,
    RetrievalPolicy,
    StoryCache,
    clear_temporal,
    inject,
    push_chunk,
    retrieve,
    set_temporal,
)
from ..film.pixels import check_cover
from ..film.reel.groups import ShownKeyframesGroup
from ..film.reel.reel import Reel, check_layout
from ..film.reel.takes import ShotPlan, plan_shot, schedule_prompts, takes
from ..film.storyboard.shot import Shot
from ..host.files.pictures import cover, load_picture
from ..host.media.embedder import Embedder
from ..host.media.keyframes import LEAD, picture_keyframes, shot_keyframes
from ..host.progress import Progress
from ..host.sampling import Conditioned, SamplerSettings, sample_chunk
from ..host.wan.noise import SeededNoise
from .dual_cache_backends import FilmWeaver
from .dual_cache_bank import StoryCaches, new_group, story_caches
from .dual_cache_inputs import Backend, ChunkInputs, check_history, chunks, prompt_per_chunk
from .engine import Capabilities, EngineBase, EngineError, ShotInputs, share_of

__all__ = ["CacheGuidedEngine"]


@dataclass(frozen=True, eq=False)
class CacheGuidedEngine(EngineBase):
    """A way to film: sampler settings, and how the caches condition a shot.

    models: one, or two that share the steps (high noise, low noise). embedder: of keyframes and prompts, for retrieval.
    backend: how the caches condition the model. negative: the negative prompt. noise: on the caches; choice: which
    frames become keyframes; policy: which keyframes condition a shot.
    """

    embedder: Embedder
    backend: Backend
    negative: str = ""
    sampling: SamplerSettings = field(default_factory=SamplerSettings)
    noise: CacheNoise = field(default_factory=CacheNoise)
    choice: ChoicePolicy = field(default_factory=ChoicePolicy)
    policy: RetrievalPolicy = field(default_factory=RetrievalPolicy)

    name: ClassVar[str] = "cache-guided"

    # What the engine is

    @property
    def capabilities(self) -> Capabilities:
        """What the backend can; every one has keyframes to edit."""
        return Capabilities(
            continues=self.backend.supports_continuation,
            references=self.backend.keyframes,
            prompts_per_shot=None if self.backend.max_chunk else 1,
            start_image=self.backend.supports_continuation,
            edits=("keyframes",),
        )

    def get_models(self) -> list[ModelPatcher]:
        """The embedder's too."""
        return [*super().get_models(), *self.embedder.get_models()]

    @property
    def block(self) -> int:
        """Latent frames of a chunk, where the backend films only so many at once."""
        return self.backend.fixed_chunk or 1

    def _settings(self) -> dict[str, Any]:
        parts = {name: vars(getattr(self, name)) for name in ("sampling", "noise", "choice", "policy")}
        layout = {"profile": self.backend.profile.to_json()} if isinstance(self.backend, FilmWeaver) else {}
        return {"backend": self.backend.name, "negative": self.negative, **parts, **layout}

    def steps(self, plan: ShotPlan) -> int:
        """Denoising steps, and one for each finished chunk."""
        return len(chunks(self.backend, plan)) * (self.sampling.steps + 1)

    def _fewer_steps(self, share: float) -> dict[str, Any]:
        return {"sampling": replace(self.sampling, steps=share_of(self.sampling.steps, share))}

    def _fingerprints(self) -> dict[str, str]:
        return {**super()._fingerprints(), "embedder": self.embedder.fingerprint}

    # What it refuses before a GPU starts

    def check(self) -> None:
        """Refuse models and settings that cannot film. Raises a ValueError of one sentence."""
        self.backend.check(self.models)
        self.check_models()
        if self.policy.count > self.backend.keyframes:
            raise EngineError(
                f"The {self.backend.name} backend takes {self.backend.keyframes} keyframe"
                f"{'s' * (self.backend.keyframes > 1)} and {self.policy.count} are asked for: lower the number."
            )
        if not self.policy.count and not self.backend.supports_empty_history:
            raise EngineError(f"The {self.backend.name} backend films from keyframes: ask for 1 or more.")

    def shot_inputs(self, shot: Shot, given: Tensor | None = None) -> ShotInputs:
        """The picture to start from, or the shot's references [n, H, W, 3], cut to the film's size. See EngineBase."""
        name = self.backend.name
        if given is not None and shot.references:
            raise EngineError("A shot starts from a picture or has references: keep one of them.")
        if len(shot.references) > self.backend.keyframes:
            raise EngineError(
                f"The {name} backend takes {self.backend.keyframes} pictures and the shot refers to "
                f"{len(shot.references)}: remove some."
            )
        if not self.backend.supports_continuation and (given is not None or shot.start != "cut"):
            raise EngineError(
                f"The {name} backend remembers no motion, so it cannot go on from a shot or a picture: "
                "start with a cut, or choose filmweaver, vace, storymem or svi."
            )
        if given is not None and shot.start != "cut":
            raise EngineError("Only a shot that starts with a cut can start from a picture: set its start to cut.")
        if not self.backend.max_chunk and len(shot.prompts) > 1:
            raise EngineError(
                f"The {name} backend films a shot in one piece and cannot change its prompt within: "
                "make a shot of each prompt."
            )
        for prompt in shot.prompts:
            self.clip.tokenize(prompt.text)
        if not shot.references:
            if given is not None:
                check_cover((given.shape[2], given.shape[1]), (self.width, self.height))
            return ShotInputs(given)
        sized = [cover(load_picture(name), self.width, self.height) for name in shot.references]
        return ShotInputs(torch.cat(sized))

    # The caches

    def remembered(self, reel: Reel) -> StoryCache:
        """The shot cache of a reel. Raises ReelError or CacheError for a reel of another size, VAE or CLIP."""
        check_layout(reel, self.layout())
        return self._story(reel).whole

    def _story(self, reel: Reel) -> StoryCaches:
        def make(shot: int) -> tuple[Keyframe, ...]:
            if reel.shots[shot].family != self.family.latents.family:
                return ()  # this VAE cannot show it: nothing of it is remembered
            return self._keyframes(reel, reel.latents(shot), reel.shots[shot].take_start, shot)

        return story_caches(reel, self._empty(), make)

    def with_history(self, reel: Reel, cache: StoryCache) -> StoryCache:
        """The cache with the newest frames of the reel's last take as its temporal cache."""
        newest = reel.tail(cache.profile.history)
        return cache if newest is None else set_temporal(cache, self.latent_format.process_in(newest)[0])

    def rank(self, cache: StoryCache, prompt: str, before: int) -> Retrieval:
        """The keyframes that a prompt calls for. before: only of shots before this one, by index; and of a user's."""
        bank = [keyframe for keyframe in cache.bank if keyframe.shot < before]
        return retrieve(bank, self.embedder.text(prompt), self.policy)

    def user_keyframes(self, pictures: Tensor, names: Sequence[Sequence[str]], pinned: bool) -> tuple[Keyframe, ...]:
        """Pictures [n, H, W, 3] in 0..1 as keyframes of a user's; names: of who is on each."""
        size = (self.width, self.height)
        return picture_keyframes(pictures, names, self.vae, self.embedder, self.latent_format, size, pinned=pinned)

    def _empty(self) -> StoryCache:
        _, channels, _, height, width = self.latent_shape(1)
        return StoryCache(
            vae=self.fingerprints["vae"],
            clip=self.fingerprints["embedder"],
            channels=channels,
            height=height,
            width=width,
            profile=self.backend.profile if isinstance(self.backend, FilmWeaver) else FILMWEAVER,
        )

    def _keyframes(self, reel: Reel, latents: Tensor, take_start: bool, shot: int) -> tuple[Keyframe, ...]:
        """The keyframes of a shot. latents: of the shot, which is number `shot` (from 0) or comes next."""
        lead = 0
        if not take_start:
            before = reel.shots[shot - 1]
            lead = min(LEAD, before.latent_frames)
            latents = torch.cat([before.latents(before.latent_frames - lead), latents], dim=2)
        size = (self.width, self.height)
        args = (self.vae, self.embedder, self.latent_format, size, self.choice)
        return shot_keyframes(latents, shot, *args, lead=lead)

    # Alone, for sampling nodes of others

    def conditioning_for(
        self,
        reel: Reel,
        positive: list[Any],
        negative: list[Any],
        prompt: str,
        frames: int,
        goes_on: bool,
        seed: int,
    ) -> Conditioned:
        """What the next chunk would be sampled with. frames: for backends that film a shot in one piece.

        goes_on: after the reel's last shot instead of a cut. Raises EngineError where the backend cannot.
        """
        if goes_on and not (self.backend.supports_continuation and reel.shots):
            raise EngineError("There is no motion to go on from: film a shot first, with a backend that remembers it.")
        cache = self.remembered(reel)
        before = takes(reel.shots)[-1].shots.start if goes_on else len(reel.shots)
        given = self.with_history(reel, cache) if goes_on else cache
        check_history(self.backend, given)
        ranked = self.rank(cache, prompt, before).keyframes
        anchor = reel.shots[before].latents(0, 1) if goes_on else None
        return self._condition(positive, negative, given, ranked, self.backend.fixed_chunk or frames, seed, anchor)

    def _condition(
        self,
        positive: list[Any],
        negative: list[Any],
        cache: StoryCache,
        keyframes: Sequence[Keyframe],
        frames: int,
        seed: int,
        anchor: Tensor | None,
    ) -> Conditioned:
        inputs = ChunkInputs(
            positive=positive,
            negative=negative,
            cache=cache,
            keyframes=keyframes,
            frames=frames,
            size=(self.width, self.height),
            vae=self.vae,
            latent_format=self.latent_format,
            noise=self.noise,
            noise_seed=seed,
            anchor=anchor,
        )
        return self.backend.condition(inputs)

    # Filming

    def film(self, shot: Shot, reel: Reel, report: Progress, inputs: ShotInputs) -> Reel:
        """Film one shot after those on the reel; see EngineBase. Raises CacheError, too, for another VAE or CLIP."""
        plan = plan_shot(reel.shots, shot, self.clock)
        # A take is not conditioned on its own keyframes: its frames before are its memory.
        first = len(reel.shots) if plan.take_start else takes(reel.shots)[-1].shots.start
        own, cache = self._story(reel)
        picture = inputs.picture
        references: tuple[Keyframe, ...] = ()
        start: list[Tensor] = []
        anchor: Tensor | None = None
        if picture is not None and shot.references:
            names = [(PurePath(name).stem,) for name in shot.references]
            references = self.user_keyframes(picture, names, pinned=False)
            cache = inject(cache, references)
        elif picture is not None:
            anchor = self.encode_frames(picture)
            start = [anchor]
            cache = set_temporal(cache, self.latent_format.process_in(anchor)[0])
        elif not plan.take_start:
            cache = self.with_history(reel, cache)
            anchor = reel.shots[first].latents(0, 1)
        check_history(self.backend, cache)
        made, shown = self._film_chunks(shot, plan, cache, references, first, anchor, report)
        # A picture to start from is the take's first frame; as much is trimmed at the end.
        latents = torch.cat([*start, *made], dim=2)[:, :, : plan.latent_frames]
        after = inject(clear_temporal(cache), self._keyframes(reel, latents, plan.take_start, len(reel.shots)))
        tensors, meta = new_group(reel, own, after)
        shown_group = {ShownKeyframesGroup.NAME: shown}
        return self._filmed(reel, shot, plan, inputs, latents, tensors=tensors, meta={**meta, **shown_group})

    def _film_chunks(
        self,
        shot: Shot,
        plan: ShotPlan,
        cache: StoryCache,
        references: tuple[Keyframe, ...],
        first: int,
        anchor: Tensor | None,
        report: Progress,
    ) -> tuple[list[Tensor], list[list[str]]]:
        """Latents of each chunk, in LATENT space, and the uids of the keyframes that conditioned each."""
        pieces = chunks(self.backend, plan)
        prompts = prompt_per_chunk(schedule_prompts(shot, plan, self.clock), pieces)
        for unseen in (prompt for prompt in shot.prompts if prompt not in prompts):
            logging.warning("Longreel: no chunk is left for the prompt at %g s: %s", unseen.at, unseen.text)
        negative = self.encode_prompt(self.negative)
        # Counted through the take: a shot that goes on with the same seed must not begin with the same noise.
        noise = SeededNoise(shot.seed, plan.take_latents)
        made: list[Tensor] = []
        shown: list[list[str]] = []
        positive: list[Any] = []
        keyframes: list[Keyframe] = []
        for index, (frames, prompt) in enumerate(zip(pieces, prompts)):
            if not index or prompt != prompts[index - 1]:
                positive = self.encode_prompt(prompt.text)
                called = [kept for kept in self.rank(cache, prompt.text, first).keyframes if kept not in references]
                keyframes = [*references, *called][: max(self.policy.count, len(references))]
            given = self._condition(positive, negative, cache, keyframes, frames, shot.seed, anchor)
            latents = sample_chunk(
                self.models,
                given,
                noise(index, 0, self.latent_shape(given.frames)),
                self.sampling,
                seed=(shot.seed + plan.take_latents + index) % 2**63,
                on_step=lambda _: report.step(),
            )
            anchor = latents[:, :, :1] if anchor is None else anchor
            made.append(latents)
            shown.append([keyframe.uid for keyframe in keyframes])
            cache = push_chunk(cache, self.latent_format.process_in(latents)[0])
            report.block_done(latents)
        return made, shown
