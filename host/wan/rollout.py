"""Film a take block by block: denoise a few latent frames, commit them to the KV memory, go on.

`roll_out` is the way in. It drives ComfyUI's own guider and sampling entry, so model loading, LoRA, hooks, memory
management, previews and interruption are ComfyUI's. Facts: docs/methods/memflow.md, sampling and prompt changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import torch

from ...film.kv_memory import (
    MEMFLOW,
    CallKind,
    FrameArena,
    KVMemory,
    MemorySettings,
    MemorySnapshot,
    Observation,
    observe,
    restore,
    snapshot,
)
from ...film.kv_memory.shots import shot_phase
from ..transfer import join_on_host, to_device, to_host
from .causal_models import check_model, kv_layout
from .forward import CausalPass, install
from .noise import Noise, SeededNoise
from .other_nodes import inference_dtype
from .prompt_guider import CONTEXT, Prompt, PromptGuider
from .rollout_checks import RolloutError, check_guidance, check_latents, check_start
from .shot_context import ShotContext

__all__ = ["Prompt", "Rollout", "RolloutError", "RolloutSampler", "roll_out"]

Start = Literal["cut", "continue", "resume"]
Loop = Literal["renoise", "euler"]
OnBlock = Callable[[int, torch.Tensor], None]
Callback = Callable[[int, torch.Tensor, torch.Tensor, int], None]

_KEY = "longreel_rollout"


@dataclass(frozen=True)
class Rollout:
    """latents: the new frames [1, C, T, h, w], fp32, CPU, ComfyUI's LATENT space; memory: the KV memory; log: the
    frames each block attended to (see film.kv_memory.observe).
    """

    latents: torch.Tensor
    memory: MemorySnapshot
    log: list[dict[str, Any]]


def roll_out(
    model: comfy.model_patcher.ModelPatcher,
    prompts: Sequence[Prompt],
    shape: tuple[int, int, int, int, int],
    sigmas: torch.Tensor,
    *,
    settings: MemorySettings = MEMFLOW,
    memory: MemorySnapshot | None = None,
    start: Start = "cut",
    first_frame: torch.Tensor | None = None,
    frames_per_block: int = 3,
    seed: int = 0,
    first_block: int = 0,
    noise: Noise | None = None,
    loop: Loop = "renoise",
    guidance: float = 1.0,
    on_block: OnBlock | None = None,
    callback: Callback | None = None,
    context: ShotContext | None = None,
) -> Rollout:
    """Film `shape` = [1, C, T, h, w] latents after those in `memory`.

    prompts: the first at frame 0; each later one switches prompt with a recache. sigmas: falling from 1 to 0.
    memory: None begins a film. start: "cut" drops the recent past (sink, bank and positions stay), "continue" keeps it
    and recaches it under the first prompt, "resume" continues without a recache (same prompt as before). first_frame:
    [1, C, n, h, w] latents (LATENT space) given as the first n frames of the take, n at most a block. seed: of the
    noise, which depends on it, the block's number in the take (from `first_block`) and the step only. noise: replaces
    the seeded noise. loop: "renoise" denoises fully and adds fresh noise at each step (the distilled models), "euler"
    follows the flow. on_block(block, latents [1, C, frames, h, w]) gets each finished block in LATENT space, on the
    sampling device. callback: ComfyUI's (step, x0, x, total steps). context: pictures of earlier shots for a cut, for a
    sink that is of these; without it the film begins.

    Peak memory does not depend on T but for the latents. Nothing is kept on the model. Raises RolloutError,
    UnsupportedModelError, MemorySettingsError, MemoryMismatchError, and ComfyUI's InterruptProcessingException.
    """
    check_model(model)
    check_guidance(guidance)
    if not prompts or prompts[0].at != 0 or [p.at for p in prompts] != sorted({p.at for p in prompts}):
        raise RolloutError("The prompts of a take must start at frame 0 and follow one another in time.")
    channels = model.model.latent_format.latent_channels
    if shape[0] != 1 or shape[1] != channels:
        raise RolloutError(f"The latents must be one video of {channels} channels, not of shape {list(shape)}.")
    if first_frame is not None and tuple(first_frame.shape[i] for i in (0, 1, 3, 4)) != (1, channels, *shape[3:]):
        raise RolloutError(f"The first frame's latent has shape {list(first_frame.shape)}; resize it to the film.")

    sampler = RolloutSampler(
        settings=settings,
        frames_per_block=frames_per_block,
        loop=loop,
        frames=shape[2],
        noise=noise or SeededNoise(seed, first_block),
        memory=memory,
        start=start,
        first_frame=first_frame,
        switches=[prompt.at for prompt in prompts],
        on_block=on_block,
        context=context,
    )
    if fault := sampler.context.fault(shape, settings.sink):
        raise RolloutError(fault)
    clone = model.clone()
    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, _KEY, sampler.prepare)
    guider = PromptGuider(clone, prompts, sampler.context)
    # ComfyUI plans its memory by this shape: what one pass holds, not the whole film
    block = torch.zeros((1, channels, frames_per_block, *shape[3:]))
    try:
        latents = guider.sample(block, block, sampler, sigmas, callback=callback, disable_pbar=True, seed=seed)
        return Rollout(latents.cpu(), snapshot(sampler.memory), [seen.read() for seen in sampler.log])
    finally:
        # the clone stays ComfyUI's current patcher; it must not keep the memory alive
        sampler.release()


class RolloutSampler(comfy.samplers.Sampler):
    """ComfyUI's SAMPLER interface of the block loop; also works in a stock custom sampling node with one prompt.

    Used so, the noise input gives each block's first noise and the seed the rest; a latent that is not empty is a clip
    to change, with a schedule that begins below full noise.
    """

    def __init__(
        self,
        *,
        settings: MemorySettings = MEMFLOW,
        frames_per_block: int = 3,
        loop: Loop = "renoise",
        frames: int | None = None,
        noise: Noise | None = None,
        memory: MemorySnapshot | None = None,
        start: Start = "cut",
        first_frame: torch.Tensor | None = None,
        switches: Sequence[int] = (0,),
        on_block: OnBlock | None = None,
        context: ShotContext | None = None,
    ) -> None:
        """frames: latent frames to film, None takes the noise input's; switches: first frame of each prompt."""
        if frames_per_block < 1:
            raise RolloutError("A block must have at least 1 frame.")
        settings.check_block(frames_per_block)
        if loop not in ("renoise", "euler"):
            raise RolloutError(f"Unknown sampling loop {loop!r}; choose 'renoise' or 'euler'.")
        if start not in ("cut", "continue", "resume"):
            raise RolloutError(f"Unknown start {start!r}; choose 'cut', 'continue' or 'resume'.")
        if memory is None and start != "cut" and settings.sink_from == "shots":
            raise RolloutError("There is no shot to go on from; set the start to 'cut'.")
        if first_frame is not None and start != "cut" and memory is not None:
            raise RolloutError("Only a take that starts with a cut can be given a first frame; set its start to 'cut'.")
        if first_frame is not None and not 0 < first_frame.shape[2] <= frames_per_block:
            raise RolloutError(f"At most {frames_per_block} first frames can be given; shorten the first-frame latent.")
        self.settings, self.frames_per_block, self.loop = settings, frames_per_block, loop
        self.frames, self.noise, self.saved, self.start = frames, noise, memory, start
        self.first_frame, self.switches, self.on_block = first_frame, list(switches), on_block
        self.context = context or ShotContext()
        self.log: list[Observation] = []
        self._memory: KVMemory | None = None

    @property
    def memory(self) -> KVMemory:
        """The KV memory of the run; raises RuntimeError outside one."""
        if self._memory is None:
            raise RuntimeError("The rollout has no memory before it starts and after it is released.")
        return self._memory

    def release(self) -> None:
        """Release everything large, for good."""
        self._memory = self.saved = self.first_frame = self.noise = self.on_block = None

    def prepare(
        self,
        executor: comfy.patcher_extension.WrapperExecutor,
        model: comfy.model_patcher.ModelPatcher,
        noise_shape: Sequence[int],
        conds: dict[str, Any],
        **kwargs: Any,
    ) -> Any:
        """PREPARE_SAMPLING wrapper: take the KV memory first, so that ComfyUI fits the model beside it."""
        self._allocate(model, noise_shape)
        if self.saved is not None or len(self.switches) > 1:
            # a recache is the longest pass
            longest = self.settings.window or self.memory.position + (self.frames or 0)
            noise_shape = [*noise_shape[:2], max(longest, noise_shape[2]), *noise_shape[3:]]
        elif self.settings.sink_from == "shots":
            noise_shape = [*noise_shape[:2], max(self.settings.sink, noise_shape[2]), *noise_shape[3:]]
        return executor(model, noise_shape, conds, **kwargs)

    def _allocate(self, model: comfy.model_patcher.ModelPatcher, shape: Sequence[int]) -> None:
        layout = kv_layout(model, shape[-2], shape[-1])
        dtype, device = inference_dtype(model), model.load_device
        capacity = self.frames if self.frames is not None else shape[2]
        past = 0 if self.saved is None else int(self.saved.meta["ring_count"])
        ring = KVMemory.ring_frames(self.settings, past + capacity)
        comfy.model_management.free_memory(FrameArena.bytes_needed(layout, self.settings, ring, dtype), device)
        if self.saved is None:
            self._memory = KVMemory(
                layout,
                self.settings,
                frames_per_block=self.frames_per_block,
                dtype=dtype,
                device=device,
                capacity=capacity,
            )
        else:
            self._memory = restore(
                self.saved,
                layout,
                self.settings,
                frames_per_block=self.frames_per_block,
                dtype=dtype,
                device=device,
                capacity=capacity,
            )

    @torch.no_grad()  # as core's samplers are: the memory is written in place
    def sample(
        self,
        model_wrap: comfy.samplers.CFGGuider,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Callback | None,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        """Film all blocks. Called by ComfyUI; returns [1, C, T, h, w] in the model's latent space, fp32, on the CPU.

        latent_image: zeros, or a clip of the noise's shape in the model's latent space, which is then changed: each
        block begins with its own frames of it, under the noise of the first sigma.
        """
        check_guidance(getattr(model_wrap, "cfg", 1.0))
        if denoise_mask is not None:
            raise RolloutError("A causal film cannot be inpainted; remove the noise mask from the latent.")
        check_model(model_wrap.model_patcher)
        check_latents(noise, model_wrap.model_patcher.model.latent_format.latent_channels)
        clip = latent_image if latent_image is not None and bool(latent_image.any()) else None
        check_start(sigmas, clip is not None)
        total = self.frames if self.frames is not None else noise.shape[2]
        if total < 1 or total % self.frames_per_block:
            raise RolloutError(
                f"{total} latent frames are not whole blocks of {self.frames_per_block}; film a multiple of it."
            )
        prepared = self._memory is not None
        if not prepared:
            self._allocate(model_wrap.model_patcher, noise.shape)
        try:
            state = CausalPass(self.memory)
            options = extra_args["model_options"].setdefault("transformer_options", {})
            install(options, state)
            source = self.noise or SeededNoise(extra_args.get("seed") or 0, given=noise)
            return _BlockLoop(self, model_wrap, state, sigmas, extra_args, callback, noise, source, clip).film(total)
        finally:
            if not prepared:
                self._memory = None


class _BlockLoop:
    """The loop itself, over one run's objects."""

    def __init__(
        self,
        plan: RolloutSampler,
        guider: comfy.samplers.CFGGuider,
        state: CausalPass,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Callback | None,
        like: torch.Tensor,
        noise: Noise,
        clip: torch.Tensor | None,
    ) -> None:
        self.plan, self.guider, self.state, self.sigmas, self.extra_args = plan, guider, state, sigmas, extra_args
        self.callback, self.noise, self.like, self.clip = callback, noise, like, clip
        self.model = guider.inner_model
        self.given: torch.Tensor | None = None
        if plan.first_frame is not None:
            self.given = self.model.process_latent_in(plan.first_frame.to(like))

    def film(self, total: int) -> torch.Tensor:
        """Film `total` latent frames."""
        plan, memory, step = self.plan, self.state.memory, self.plan.frames_per_block
        if plan.start == "cut" and memory.settings.sink_from == "shots":
            self._prefill_sink(plan.context)
        elif plan.start == "cut":
            memory.drop_window()
        if plan.start != "resume":
            self._switch(0)
        output: list[torch.Tensor] = []
        segment = 0
        for block in range(total // step):
            due = sum(at <= block * step for at in plan.switches) - 1
            if due != segment:
                segment = due
                self._switch(segment)
            latents = self._denoise(block, total // step, self.given if block == 0 else None)
            self._forward(CallKind.COMMIT, latents, torch.zeros_like(self.sigmas[0]))
            memory.remember_clean(latents)
            plan.log.append(observe(memory))
            output.append(to_host(latents))
            if plan.on_block is not None:
                plan.on_block(block, self.model.process_latent_out(latents))
        return join_on_host(output, 2, self.like.device)

    def _prefill_sink(self, context: ShotContext) -> None:
        """A cut: earlier shots' pictures become the sink, each under its own words."""
        sink = self.state.memory.settings.sink
        self.state.memory.begin_take(context.take, context.position, context.sink_frames(sink))
        pictures = torch.zeros((1, self.like.shape[1], sink, *self.like.shape[3:]), device=self.like.device)
        if context.pictures is not None:
            pictures = self.model.process_latent_in(context.pictures.to(pictures))
        if isinstance(self.guider, PromptGuider) and context.captions:
            self.guider.segment, self.state.rows = CONTEXT, context.rows()
        self.state.new_prompt()
        self._forward(CallKind.PREFILL, pictures, torch.zeros_like(self.sigmas[0]))
        self.state.rows = []

    def _switch(self, segment: int) -> None:
        """Go on under another prompt: its own text keys, and the window's frames computed again."""
        if isinstance(self.guider, PromptGuider):
            self.guider.segment = segment
        self.state.new_prompt()
        clean = self.state.memory.clean_latents()
        if clean is not None:
            self._forward(CallKind.RECACHE, clean, torch.zeros_like(self.sigmas[0]))
            # the original builds the text keys anew after a recache, so the next fold has none to score with
            self.state.memory.forget_text()

    def _denoise(self, block: int, blocks: int, given: torch.Tensor | None) -> torch.Tensor:
        """The clean latents of one block [1, C, frames, h, w]."""
        shape = (1, self.like.shape[1], self.plan.frames_per_block, *self.like.shape[3:])
        sampling, steps = self.model.model_sampling, len(self.sigmas) - 1
        self.state.given = 0 if given is None else given.shape[2]
        if self.clip is None:
            x = clean = torch.zeros(shape, dtype=torch.float32, device=self.like.device)
        else:
            x = clean = self.clip[:, :, block * shape[2] : (block + 1) * shape[2]].float()
        for i, (sigma, following) in enumerate(zip(self.sigmas[:-1], self.sigmas[1:], strict=True)):
            if i == 0 or self.plan.loop == "renoise":
                x = sampling.noise_scaling(sigma, to_device(self.noise(block, i, shape), x.device).to(x), clean)
            if given is not None:
                x[:, :, : self.state.given] = given
            clean = self._forward(CallKind.DENOISE, x, sigma)
            if given is not None:
                clean[:, :, : self.state.given] = given
            if self.callback is not None:
                self.callback(block * steps + i, clean, x, blocks * steps)
            if self.plan.loop == "euler":
                x = clean + (x - clean) * (following / sigma)
        self.state.given = 0
        return clean

    def _forward(self, kind: CallKind, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.state.begin(kind, x.shape[2])
        memory = self.state.memory
        if memory.settings.sink_from == "shots":
            filmed = [shot_phase(memory.take)] * x.shape[2]
            self.state.phases = self.plan.context.phases(x.shape[2]) if kind is CallKind.PREFILL else filmed
        denoised: torch.Tensor = self.guider(x, sigma.reshape(1), **self.extra_args)
        if self.state.calls != 1:
            raise RolloutError(
                "The prompt was not active in every step: remove its start and end percentages, and nodes that leave "
                "steps out (a step cache)."
            )
        return denoised
