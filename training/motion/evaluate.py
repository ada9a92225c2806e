"""How good an adapter is: by how much it minds the order of frames, and how right its predicted motion is.

- Permutation gap (VideoJAM, section 3): the loss of a video whose frames are in another order, less that of the video.
  A model that looks at single frames has none. It needs no labels and no sampling.
- Flow by noise level: the motion predicted from a noised clip against the clip's own, both decoded. It becomes the gate
  in the adapter's file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...film.motion import FlowGate, GateLevel, flow_errors
from ...host.adapters.motion import MotionAdapter, attach, read_adapter, write_adapter
from ...host.wan.joint_latent import joint_of
from .data import Encoders, MotionExample, MotionSpec, load_examples, spec_of
from .objective import JointMatcher, Prepared, pad_texts

__all__ = ["GATE_LEVELS", "adapter_matcher", "flow_gate", "measure", "permutation_gap"]

MEASURED = 16
"""Clips that the gate is measured on; each is decoded at every level."""
GATE_LEVELS = (0.95, 0.875, 0.75, 0.5)
"""Noise levels at which the predicted motion is measured."""
PERMUTATION_LEVELS = (0.98, 0.95, 0.9, 0.8, 0.65, 0.5)


@torch.no_grad()
def permutation_gap(
    matcher: JointMatcher,
    examples: Sequence[MotionExample],
    levels: Sequence[float] = PERMUTATION_LEVELS,
    seed: int = 0,
) -> dict[float, float]:
    """Mean loss of shuffled clips less that of the clips as they are, by noise level; of clips encoded to measure by.

    Noise is the same for both, and the motion input left out, so that models with and without one are compared alike.
    """
    gaps = {}
    for level in levels:
        total = 0.0
        for index, example in enumerate(examples):
            assert example.shuffled is not None
            pair = [_at_level(matcher, x, example, level, seed * 100_003 + index) for x in _orders(example)]
            straight, shuffled = (float(matcher.losses(each).appearance.mean()) for each in pair)
            total += shuffled - straight
        gaps[level] = total / len(examples)
    return gaps


@torch.no_grad()
def flow_gate(
    matcher: JointMatcher,
    examples: Sequence[MotionExample],
    spec: MotionSpec,
    model: Any,
    vae: Any,
    levels: Sequence[float] = GATE_LEVELS,
    seed: int = 0,
) -> FlowGate:
    """The predicted motion of noised clips against their true motion; of clips encoded to measure by.

    Both are flow as the VAE decodes it, less what it makes of no motion: pictures of flow are not what it was trained
    on, and its own errors say nothing of the adapter. model, vae: as ComfyUI's loaders give them.
    """
    base = model.model

    def flow_of(latents: torch.Tensor) -> torch.Tensor:
        pictures = vae.decode(base.process_latent_out(latents.cpu().float()))[0]
        return spec.codec.decode(pictures[1:, ..., :3].float().cpu())

    nothing = spec.codec.still(spec.height, spec.width).repeat(spec.frames, 1, 1, 1)
    still = flow_of(base.process_latent_in(vae.encode(nothing)))
    true = [flow_of(example.motion[None]) - still for example in examples]
    found = []
    for level in levels:
        sums, turned = torch.zeros(2, dtype=torch.float64), 0.0
        for index, example in enumerate(examples):
            batch = _at_level(matcher, example.latents, example, level, seed * 100_003 + index, drop=False)
            _, velocity = matcher.velocities(batch)
            assert velocity is not None
            clean = matcher.guess(batch.d, batch.sigma, velocity) / matcher.scale
            errors = flow_errors(flow_of(clean) - still, true[index])
            sums += torch.tensor([errors.endpoint, errors.trivial], dtype=torch.float64) / len(examples)
            turned += (errors.direction if errors.moving > 0 else 90.0) / len(examples)
        found.append(GateLevel(level, float(sums[0]), float(sums[1]), turned))
    return FlowGate(tuple(found))


def adapter_matcher(model: Any, adapter: MotionAdapter | None) -> JointMatcher:
    """The model, as core's loader gives it, with an adapter or alone, to be measured as in training."""
    import comfy.model_management

    if adapter is None:
        comfy.model_management.load_models_gpu([model])
        return JointMatcher(model.model.diffusion_model, None, False)
    patched = attach(model, adapter)
    comfy.model_management.load_models_gpu([patched])
    return JointMatcher(patched.model.diffusion_model, joint_of(patched), False)


def _orders(example: MotionExample) -> tuple[torch.Tensor, torch.Tensor]:
    assert example.shuffled is not None
    return example.latents, example.shuffled


def _at_level(
    matcher: JointMatcher, latents: torch.Tensor, example: MotionExample, level: float, seed: int, drop: bool = True
) -> Prepared:
    """One clip at one noise level; of a seed the noise is the same."""
    generator = torch.Generator().manual_seed(seed)
    noise_x, noise_d = (torch.randn(latents[None].shape, generator=generator).to(matcher.device) for _ in range(2))
    x, d = latents[None].to(matcher.device), example.motion[None].to(matcher.device) * matcher.scale
    sigma = torch.tensor([level])
    return Prepared(
        matcher.add_noise(x, sigma, noise_x),
        matcher.add_noise(d, sigma, noise_d),
        noise_x - x,
        noise_d - d,
        sigma,
        pad_texts([example.text], example.text, torch.zeros(1)),
        torch.full((1, 1), float(drop), device=matcher.device),
    )


def measure(path: Path, folder: Path, encoders: Encoders) -> MotionAdapter:
    """Measure an adapter's predicted motion on a dataset to measure by, and write that into its file."""
    adapter = read_adapter(path)
    matcher = adapter_matcher(encoders.model, adapter)
    examples = load_examples(folder)[0][:MEASURED]
    gate = flow_gate(matcher, examples, spec_of(folder), encoders.model, encoders.vae)
    measured = replace(adapter, info=replace(adapter.info, gate=gate))
    write_adapter(path, measured)
    return measured
