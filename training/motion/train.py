"""A motion adapter's run: the added layers, a LoRA or the whole trunk, on the shared loop.

A run's folder holds `motion.ckpt` (to resume, on a CPU to the bit), `motion.jsonl` and `loss.png`, `recipe.json`,
`step-<n>.safetensors` now and then, and in the end `motion.safetensors` with averaged weights.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...film.motion import AdapterInfo, MotionLayers
from ...host.adapters.motion import MotionAdapter, write_adapter
from ...host.wan.joint_latent import JointLatent, check_model
from ..core.loop import Metrics
from ..core.lora import Adapter, adapt, choose_layers, clone_sharing_weights
from ..core.objectives.denoiser import stratified
from ..core.run import on_its_device, recompute, remember_settings, run_training, uses_bf16
from ..core.trainable import ParamGroup, Trainable
from ..miniature.sequences import mix_few_step_sigmas
from .data import Encoders, MotionExample, MotionSpec
from .objective import JointMatcher, Losses
from .settings import MotionSettings

__all__ = ["JointTrainable", "prepare", "train_motion"]

NAME = "motion"


class JointTrainable(Trainable):
    """The added layers and what of the trunk learns: a LoRA, all of it, or nothing.

    Its file is a motion adapter's.
    """

    def __init__(self, layers: MotionLayers, trunk: nn.Module | None, info: AdapterInfo, motion_lr_scale: float):
        super().__init__()
        self.layers, self.info, self.motion_lr_scale = layers, info, motion_lr_scale
        self.trunk = trunk
        self._before = {} if trunk is None or isinstance(trunk, Adapter) else _copied(trunk)

    def groups(self) -> Sequence[ParamGroup]:
        """The layers at a rate of their own and without decay, from which zeros would never leave; the trunk."""
        own = ParamGroup(tuple(self.layers.parameters()), lr_scale=self.motion_lr_scale, weight_decay=0.0)
        if self.trunk is None:
            return [own]
        if isinstance(self.trunk, Adapter):
            return [own, *self.trunk.groups()]
        return [own, ParamGroup(tuple(self.trunk.parameters()))]

    @torch.no_grad()
    def weights(self) -> dict[str, torch.Tensor]:
        """The trunk's part of the file: a LoRA, or differences of whole weights."""
        if self.trunk is None:
            return {}
        if isinstance(self.trunk, Adapter):
            named = {}
            for name, pair in self.trunk.items():
                prefix = f"diffusion_model.{name}"
                named[f"{prefix}.lora_down.weight"] = pair.down.detach().cpu().to(torch.bfloat16)
                named[f"{prefix}.lora_up.weight"] = pair.up.detach().cpu().to(torch.bfloat16)
                named[f"{prefix}.alpha"] = torch.tensor(pair.alpha)
            return named
        return {
            f"diffusion_model.{name.removesuffix('.weight')}.diff": (value.detach().cpu() - self._before[name]).to(
                torch.bfloat16
            )
            for name, value in self.trunk.named_parameters()
        }

    def adapter(self, metadata: Mapping[str, str]) -> MotionAdapter:
        """What the file will hold. metadata: of the run."""
        info = replace(self.info, training={**self.info.training, **metadata})
        layers = {name: value.detach().float().cpu() for name, value in self.layers.state_dict().items()}
        return MotionAdapter(NAME, info, layers, self.weights())

    def export(self, path: Path, metadata: Mapping[str, str]) -> Path:
        """A motion adapter."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_adapter(path, self.adapter(metadata))
        return path


def train_motion(
    examples: Sequence[MotionExample],
    empty: torch.Tensor,
    encoders: Encoders,
    spec: MotionSpec,
    settings: MotionSettings,
    folder: Path,
    *,
    sample: Callable[[int], None] | None = None,
    stops: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
    say: Callable[[str], None] = print,
) -> Path:
    """Train an adapter; returns its file. A run that was stopped goes on in `folder`.

    examples: of `spec`. empty: the empty prompt [L, D]. Raises LoraError and MotionError for settings or models that do
    not fit.
    """
    model = encoders.model
    info = spec.told(_info(model, encoders.name, settings))
    check_model(model, info)
    remember_settings(settings, folder, base=encoders.name, clips=len(examples))
    model = on_its_device(model)
    tree, trainable, matcher = prepare(model.model.diffusion_model, info, settings)

    def loss_at(draw: int) -> tuple[torch.Tensor, Metrics]:
        return _loss(draw, matcher, settings, _drawn(examples, settings, draw), empty)

    told = {
        "base": encoders.name, "lora_rank": str(settings.rank), "trunk": settings.trunk, "clips": str(len(examples)),
        "p_text_drop": f"{settings.text_drop:g}", "p_motion_drop": f"{settings.motion_drop:g}",
        "lambda_motion": f"{settings.lambda_motion:g}", "sigma_shift": f"{settings.shift:g}", "lr": f"{settings.lr:g}",
        "train_resolution": f"{spec.width}x{spec.height}", "train_frames": str(spec.frames),
    }  # fmt: skip
    return run_training(NAME, tree, trainable, loss_at, settings, folder, told, sample=sample, stops=stops, say=say)


def prepare(dit: Any, info: AdapterInfo, settings: MotionSettings) -> tuple[nn.Module, JointTrainable, JointMatcher]:
    """The model that runs in training (a second tree over the weights of `dit`), what of it is trained, and its
    objective.
    """
    weight = dit.head.modulation
    layers = MotionLayers(info.dim, info.latent_channels, info.patch, separate=info.head == "separate")
    layers.reset(weight.detach().float().cpu())
    layers.to(weight.device)
    tree: Any
    trunk: nn.Module | None = None
    if settings.trunk == "lora":
        names = choose_layers(dit, settings.layers)
        tree, trunk = adapt(
            dit, names, settings.rank, alpha=settings.alpha, dropout=settings.dropout, seed=settings.seed
        )
    else:
        tree = clone_sharing_weights(dit)
        if settings.trunk == "full":
            tree = copy.deepcopy(tree).requires_grad_(True)
            trunk = tree
    trainable = JointTrainable(layers, trunk, info, settings.motion_lr / settings.lr)
    if settings.checkpointing:
        recompute(tree.blocks)
    joint = JointLatent(layers, info) if settings.lambda_motion else None
    return tree, trainable, JointMatcher(tree, joint, uses_bf16(settings.precision, weight.device))


def _info(model: Any, name: str, settings: MotionSettings) -> AdapterInfo:
    """What the model is, as an adapter's file says it."""
    dit, latents = model.model.diffusion_model, model.model.latent_format
    time, rows, columns = dit.patch_size
    return AdapterInfo(
        base_model=name,
        latent_channels=latents.latent_channels,
        dim=dit.dim,
        patch=(time, rows, columns),
        latent_format=type(latents).__name__,
        head=settings.head,
        full=settings.trunk == "full",
    )


def _drawn(examples: Sequence[MotionExample], settings: MotionSettings, draw: int) -> list[MotionExample]:
    """The clips of one draw, decided by the seed and its number alone."""
    rng = random.Random(f"motion {settings.seed} {draw}")
    if len(examples) < settings.batch:
        return rng.choices(examples, k=settings.batch)
    return rng.sample(examples, settings.batch)


def _loss(
    step: int, matcher: JointMatcher, settings: MotionSettings, batch: list[MotionExample], empty: torch.Tensor
) -> tuple[torch.Tensor, Metrics]:
    """The loss of a batch; the gradients of all passes but the last are already there when this returns."""
    sigma = settings.sigmas.quantile(stratified(len(batch)))
    if settings.few_step_rate:
        sigma = mix_few_step_sigmas(sigma, settings.few_step_rate)
    weight = 0.0 if step < settings.flow_first and settings.lambda_motion else 1.0
    starts = range(0, len(batch), settings.micro_batch)
    parts, before = [], 0.0
    for start in starts:
        own = slice(start, start + settings.micro_batch)
        prepared = matcher.prepare(batch[own], sigma[own], empty, settings.text_drop, settings.motion_drop)
        losses = matcher.losses(prepared, motion_loss_on_drop=settings.motion_loss_on_drop)
        parts.append(losses)
        loss = (weight * losses.appearance + settings.lambda_motion * losses.motion).sum() / len(batch)
        if start == starts[-1]:
            break
        loss.backward()
        before += float(loss.detach())
    whole = Losses(*(torch.cat([getattr(each, name).detach() for each in parts]) for name in ("appearance", "motion")))
    figures: dict[str, float | torch.Tensor] = {"appearance": whole.appearance.mean()}
    if settings.lambda_motion:
        figures["motion"] = whole.motion.mean()
    return loss + before, figures | whole.by_level(sigma)


def _copied(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in module.named_parameters()}
