"""The causal engine: a Wan model films a shot block by block over a bounded KV memory.

A shot becomes latents in six steps, all in `CausalEngine.film`: plan its length, encode its prompts, encode its first
picture if it has one, restore the memory that the reel's last shot left, roll the film out, and put latents and memory
on disk as one more shot of the reel. Nothing is decoded on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..film.kv_memory import MEMFLOW, MemorySettings, MemorySnapshot
from ..film.kv_memory.arena import FrameArena
from ..film.kv_memory.kv import KVMemory
from ..film.kv_memory.recall import RetrievedFrame
from ..film.kv_memory.snapshot import check as check_snapshot
from ..film.pixels import check_cover
from ..film.reel.groups import KVLogGroup, KVMemoryGroup
from ..film.reel.reel import Reel, ReelError, check_layout
from ..film.reel.takes import ShotPlan, plan_shot, schedule_prompts
from ..film.storyboard.shot import Shot
from ..host.families import encode_image
from ..host.files.pictures import load_picture
from ..host.progress import Progress
from ..host.wan.causal_models import check_model, kv_layout
from ..host.wan.other_nodes import inference_dtype
from ..host.wan.recall import prompt_keys
from ..host.wan.rollout import Prompt, roll_out
from ..host.wan.rollout_checks import check_start
from .causal_context import earlier_shots
from .causal_memory import decode_stills, restore, retrieve
from .engine import Capabilities, EngineBase, EngineError, ShotInputs, share_of

__all__ = ["CausalEngine"]


@dataclass(frozen=True, eq=False)
class CausalEngine(EngineBase):
    """A way to film: sampled how, remembering how much.

    models: one. sigmas: falling from 1 to 0; one denoising call for each but the last. loop: "renoise" for
    models distilled to few steps, "euler" follows the flow. memory: sizes in latent frames. frames_per_block: latent
    frames that are denoised together.
    """

    sigmas: tuple[float, ...]
    loop: Literal["renoise", "euler"] = "renoise"
    memory: MemorySettings = MEMFLOW
    frames_per_block: int = 3

    name: ClassVar[str] = "causal"

    # What the engine is

    @property
    def capabilities(self) -> Capabilities:
        """It continues any shot, and has a bank to pin and ban in."""
        return Capabilities(continues=True, references=1, prompts_per_shot=None, start_image=True, edits=("kv_bank",))

    @property
    def model(self) -> ModelPatcher:
        """The one model."""
        return self.models[0]

    @property
    def block(self) -> int:
        """Latent frames that are filmed together."""
        return self.frames_per_block

    def _memory_layout(self) -> dict[str, Any]:
        kv = kv_layout(self.model, *self._latent_size)
        remembered = {"layers": kv.layers, "heads": kv.heads, "head_dim": kv.head_dim}
        return {"causal": {**remembered, "frames_per_block": self.frames_per_block}}

    def _settings(self) -> dict[str, Any]:
        return {
            "sigmas": list(self.sigmas),
            "loop": self.loop,
            "memory": self.memory.to_json(),
            "frames_per_block": self.frames_per_block,
        }

    def memory_bytes(self, latent_frames: int) -> int:
        """Of the KV memory."""
        kv = kv_layout(self.model, *self._latent_size)
        ring = KVMemory.ring_frames(self.memory, latent_frames)
        return FrameArena.bytes_needed(kv, self.memory, ring, inference_dtype(self.model))

    def steps(self, plan: ShotPlan) -> int:
        """Forward passes: denoising and one clean pass for each block."""
        return plan.latent_frames // self.frames_per_block * len(self.sigmas)

    def _fewer_steps(self, share: float) -> dict[str, Any]:
        # Sigmas of the schedule itself: a model that was distilled to them knows no others.
        steps = len(self.sigmas) - 1
        fewer = share_of(steps, share)
        return {"sigmas": tuple(self.sigmas[round(i * steps / fewer)] for i in range(fewer + 1))}

    @property
    def _latent_size(self) -> tuple[int, int]:
        _, _, _, height, width = self.latent_shape(1)
        return height, width

    # What it refuses before a GPU starts

    def check(self) -> None:
        """Refuse models and settings that cannot film.

        Raises EngineError, UnsupportedModelError, UnsupportedVaeError, RolloutError or MemorySettingsError, all
        ValueErrors of one sentence.
        """
        check_model(self.model)
        self.check_models()
        check_start(torch.tensor(self.sigmas))
        self.memory.check_block(self.frames_per_block)

    def shot_inputs(self, shot: Shot, given: Tensor | None = None) -> ShotInputs:
        """Its first frame: the picture given, or its one reference. See EngineBase."""
        pictures = len(shot.references) + (given is not None)
        if pictures > 1:
            raise EngineError(f"A shot of the causal engine starts from one picture and this has {pictures}: keep one.")
        if pictures and shot.start != "cut":
            raise EngineError("Only a shot that starts with a cut can start from a picture: set its start to cut.")
        for prompt in shot.prompts:
            self.clip.tokenize(prompt.text)
        picture = load_picture(shot.references[0]) if shot.references else given
        if picture is not None:
            check_cover((picture.shape[2], picture.shape[1]), (self.width, self.height))
        return ShotInputs(picture)

    # Filming

    def film(self, shot: Shot, reel: Reel, report: Progress, inputs: ShotInputs) -> Reel:
        """Film one shot; see EngineBase. Raises MemoryMismatchError, too, for a reel with another kind of memory."""
        plan = plan_shot(reel.shots, shot, self.clock)
        context = None
        if self.memory.sink_from == "shots" and plan.take_start:
            # nothing of the last shot's memory outlives a cut
            context = earlier_shots(reel, self.memory.sink, self.vae, self.encode_prompt)
        memory = self._memory_after(reel) if context is None else None
        given = None if inputs.picture is None else encode_image(self.vae, inputs.picture, self.width, self.height)
        start, again = shot.start, 0
        if memory is None and not plan.take_start and self.memory.sink_from != "shots":
            given, start, again = self._last_block(reel), "cut", self.block
        passes = again // self.block * (len(self.sigmas) - 1)
        rollout = roll_out(
            self.model,
            self._prompts(shot, plan, again),
            self.latent_shape(again + plan.latent_frames),
            torch.tensor(self.sigmas),
            settings=self.memory,
            memory=memory,
            start=start,
            first_frame=given,
            frames_per_block=self.frames_per_block,
            seed=shot.seed,
            loop=self.loop,
            on_block=lambda block, latents: report.block_done(latents) if block * self.block >= again else None,
            callback=lambda step, *_: report.step() if step >= passes else None,
            context=context,
        )
        return self._filmed(
            reel,
            shot,
            plan,
            inputs,
            rollout.latents[:, :, again:],
            tensors={KVMemoryGroup.NAME: dict(rollout.memory.tensors)},
            meta={KVMemoryGroup.NAME: rollout.memory.meta, KVLogGroup.NAME: rollout.log[again // self.block :]},
        )

    def _last_block(self, reel: Reel) -> Tensor:
        """The newest block of the last take, to go on from where no KV memory is left of it: it is filmed again.

        So a shot of another engine, a clip, or a shot that was cut short can be continued; the memory then holds that
        block of it and nothing before.
        """
        latents = reel.tail(self.block)
        if latents is None or latents.shape[2] < self.block:
            raise EngineError(
                f"The take to go on from is shorter than a block of {self.block} latent frames: begin with a longer "
                "one, or start with a cut."
            )
        return latents

    # Remembering

    def retrieve(self, reel: Reel, prompt: str, top: int) -> tuple[list[RetrievedFrame], Tensor]:
        """The `top` frames of the memory by score for a prompt, best first, and their stills [n, H, W, 3].

        Raises ReelError for a reel without a memory or filmed otherwise, or the text encoder's ValueError.
        """
        check_layout(reel, self.layout())
        if self.memory.sink_from == "shots":
            raise ReelError(
                "ShotStream shows pictures of all earlier shots, whatever the prompt: there is nothing to retrieve."
            )
        text = prompt_keys(self.model, self.encode_prompt(prompt), mask_padding=self.memory.mask_padding)
        found = retrieve(reel, text)[:top]
        if not found:
            raise ReelError("This film has neither sink nor bank, so nothing can be brought back: film it with a bank.")
        return found, decode_stills(self.vae, reel, [item.frame for item in found])

    def _memory_after(self, reel: Reel) -> MemorySnapshot | None:
        """The memory of the reel's last shot, None where the film begins."""
        memory = restore(reel)
        if memory is None:
            return None
        check_snapshot(
            memory,
            kv_layout(self.model, *self._latent_size),
            self.memory,
            frames_per_block=self.frames_per_block,
        )
        return memory

    def _prompts(self, shot: Shot, plan: ShotPlan, before: int) -> Sequence[Prompt]:
        """The shot's prompts, encoded, with the frame at which each begins to hold; `before` frames are not its own."""
        schedule = schedule_prompts(shot, plan, self.clock)
        return [Prompt(at and before + at, self.encode_prompt(prompt.text)) for at, prompt in schedule.changes]
