"""Many films at once, each with its own prompts and seed, on the memory that films one: for judging, where a small
model's time goes into the calls and not into the arithmetic.

A film made so equals the one that `host.wan.forward.rollout.roll_out` makes (a test holds them together).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ...film.kv_memory import Call, CallKind, KVLayout, KVMemory, MemorySettings
from ...host.wan.forward import CausalPass, causal_forward
from ...host.wan.noise import SeededNoise


class FilmsMemory:
    """A KVMemory of B films that are at the same block: what KVMemory calls a layer is here one of a film's layers, and
    keys and values of a layer lie together, [B, heads, slots * tokens, head_dim]. Absolute positions only.
    """

    def __init__(
        self,
        layout: KVLayout,
        settings: MemorySettings,
        films: int,
        frames_per_block: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        if settings.positions != "absolute":
            raise ValueError("Films can only be made together with absolute positions.")
        self.films, self.settings, self.layers = films, settings, layout.layers
        rows = replace(layout, layers=layout.layers * films)
        self.memory = KVMemory(rows, settings, frames_per_block=frames_per_block, dtype=dtype, device=device)
        self.layout, self.arena = layout, self.memory.arena
        self.k, self.v = (
            [x[0].expand(films, *x[0].shape[1:]).clone() for _ in range(layout.layers)]
            for x in (self.arena.k, self.arena.v)
        )
        for joint, rowwise in ((self.k, self.arena.k), (self.v, self.arena.v)):
            rowwise[:] = [part for layer in joint for part in layer.split(1)]

    def _rows(self, layer: int) -> range:
        return range(layer * self.films, (layer + 1) * self.films)

    def set_text(self, layer: int, mean_keys: torch.Tensor) -> None:
        """As KVMemory's, for all films: [B, heads, head_dim]."""
        for row, key in zip(self._rows(layer), mean_keys, strict=True):
            self.memory.set_text(row, key)

    def begin_call(self, kind: CallKind, frames: int) -> Call:
        """As KVMemory's."""
        self._call = self.memory.begin_call(kind, frames)
        return self._call

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """As KVMemory's, for all films: [B, heads, frames * tokens, head_dim]."""
        tokens = self.memory.layout.tokens
        for source, slot, frames in self._call.runs:
            length = frames * tokens
            new_k = k.narrow(2, source * tokens, length)
            self.k[layer].narrow(2, slot * tokens, length).copy_(new_k)
            self.v[layer].narrow(2, slot * tokens, length).copy_(v.narrow(2, source * tokens, length))
            if slot < self.arena.ring_base:
                at = slot - self.arena.sink_base
                means = new_k.unflatten(2, (frames, tokens)).float().mean(dim=3).transpose(1, 2)
                rows = self._rows(layer)
                self.memory.sink_means[rows.start : rows.stop, at : at + frames] = means

    def read(self, layer: int, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As KVMemory's, for all films."""
        call, rows, tokens = self._call, self._rows(layer), self.memory.layout.tokens
        first, stop = call.first_slot, call.ring_end
        if self.memory.pick(rows.start, q[:1]) is not None:
            for film, row in enumerate(rows):
                self.memory.read(row, q[film : film + 1])
            first, stop = self.arena.ring_base, call.ring_end + self.settings.active
        start, length = first * tokens, (stop - first) * tokens
        return self.k[layer].narrow(2, start, length), self.v[layer].narrow(2, start, length)

    def end_call(self) -> None:
        """As KVMemory's."""
        self.memory.end_call()


@torch.inference_mode()
def film_together(
    model: Any,
    layout: KVLayout,
    prompts: Sequence[torch.Tensor],
    lengths: Sequence[int],
    sigmas: torch.Tensor,
    seeds: Sequence[Sequence[int]],
    *,
    settings: MemorySettings,
    frames_per_block: int = 3,
    on_block: Callable[[int, KVMemory], None] | None = None,
) -> list[torch.Tensor]:
    """Film B films of the same cut: shot after shot, each after a cut, by re-noising.

    model: a BaseModel of ComfyUI, loaded and patched; layout: its `kv_layout`; prompts: for each shot the encoded
    prompts of all films [B, rows, width]; lengths: latent frames of each shot; seeds: for each shot, one a film.
    on_block(shot, memory) is called after every block; a film's layer l is row l * B + film of its memory. Returns for
    each shot the latents [B, C, T, h, w] in the model's own space.
    """
    dit, films = model.diffusion_model, len(prompts[0])
    dtype, device = model.get_dtype_inference(), dit.patch_embedding.weight.device
    memory = FilmsMemory(layout, settings, films, frames_per_block, dtype, device)
    sigmas = sigmas.to(device)
    state = CausalPass(memory)  # type: ignore[arg-type]
    side = 2 * round(layout.tokens**0.5)
    shots = []
    for number, (context, length) in enumerate(zip(prompts, lengths, strict=True)):
        memory.memory.drop_window()
        memory.memory.forget_text()
        state.text = []
        context = context.to(device)
        noise = [SeededNoise(seed) for seed in seeds[number]]
        blocks = []

        def forward(kind: CallKind, x: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            state.kind, state.frames = kind, x.shape[2]
            time = model.model_sampling.timestep(sigma).float().reshape(1)
            flow = causal_forward(dit, x.to(dtype), time, text.to(dtype), state, {})
            return x - flow.float() * sigma

        for block in range(length // frames_per_block):
            clean = torch.zeros(films, model.latent_format.latent_channels, frames_per_block, side, side, device=device)
            for step, sigma in enumerate(sigmas[:-1]):
                fresh = torch.cat([source(block, step, (1, *clean.shape[1:])) for source in noise]).to(device)
                clean = forward(CallKind.DENOISE, sigma * fresh + (1 - sigma) * clean, sigma, context)
            forward(CallKind.COMMIT, clean, torch.zeros((), device=device), context)
            if on_block is not None:
                on_block(number, memory.memory)
            blocks.append(clean.cpu())
        shots.append(torch.cat(blocks, dim=2))
    return shots
