"""Low-rank adapters (LoRA) on any diffusion model as ComfyUI loads it, and the file that core's LoRA loaders apply.

The adapted model is a second module tree over the same weights: the caller's own stays as it was, so nothing is patched
and nothing has to be undone. In it a chosen Linear is replaced by `LoRALinear`, a Linear that calls the base layer and
adds the pair's output. That, and not `parametrize`, because a parametrization builds the whole matrix `up @ down` at
every forward pass and needs the base weight as a plain tensor; a base that ComfyUI casts, offloads or keeps in fp8 only
has to be callable here. The matrix is built where `weight` is read, as core's layers do since 0.33.

Source: LoRA, arXiv 2106.09685, section 4.1; scale = alpha / rank.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from .trainable import ParamGroup, Trainable, write_tensors

WAN_LAYERS = r"blocks\.\d+\..*|time_projection\.1"
"""What FFGo adapts of a Wan model: every Linear of the blocks and the time projection."""
WAN_SELF_ATTENTION = r"blocks\.\d+\.self_attn\.[qkvo]"
"""What is enough to learn to read more tokens: self-attention."""


class LoraError(ValueError):
    """A LoRA that cannot be made or trained as asked; the message is one sentence that says what to change."""


class LoRAWeights(nn.Module):
    """`down` [rank, in] and `up` [out, rank] in float32: x [..., in] to (alpha / rank) * up(down(x)) [..., out].

    `up` starts at zero, so that a fresh adapter changes nothing.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, dropout: float, generator: torch.Generator):
        super().__init__()
        device = layer.weight.device
        down = torch.empty(rank, layer.in_features)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank, device=device))
        self.alpha, self.scale, self.dropout = alpha, alpha / rank, dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(x, self.dropout, self.training)
        return F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype)) * self.scale

    def delta(self) -> torch.Tensor:
        """What the pair adds to the weight [out, in], float32."""
        return self.scale * (self.up @ self.down)


class LoRALinear(nn.Linear):
    """A layer with a pair beside it, a layer itself: who computes with its `weight` and `bias` gets the adapted result,
    too, with gradients of the pair; only dropout, which acts on the pair's inputs, is not in the weight.

    All else that ComfyUI's layers have (`weight_function`, `comfy_cast_weights`, ...) is the base layer's.
    """

    def __init__(self, base: nn.Linear, pair: LoRAWeights):
        nn.Module.__init__(self)  # no parameters of its own
        self.base, self.pair = base, pair
        self.in_features, self.out_features = base.in_features, base.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.base(x)
        return y + self.pair(x).to(y.dtype)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The adapted weight [out, in] in the base's dtype; in float32 where that is an 8-bit one."""
        weight = self.base.weight
        dtype = weight.dtype if weight.dtype.itemsize > 1 else torch.float32
        return weight.to(dtype) + self.pair.delta().to(dtype)

    @property
    def bias(self) -> torch.Tensor | None:  # type: ignore[override]
        """The base's."""
        return self.base.bias

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base", "pair"):
                raise
            return getattr(self.base, name)


class Adapter(Trainable):
    """All pairs of a LoRA and nothing of its base: what is trained, averaged and checkpointed.

    names: the dotted names of the layers, in the order of `pairs`.
    """

    def __init__(self, names: Iterable[str], pairs: Iterable[LoRAWeights]):
        super().__init__()
        self.names = tuple(names)
        self.pairs = nn.ModuleList(pairs)

    def items(self) -> list[tuple[str, LoRAWeights]]:
        """Layer names with their pairs."""
        return list(zip(self.names, self.pairs, strict=True))  # type: ignore[arg-type]

    def groups(self) -> list[ParamGroup]:
        """One; matrices go to Muon where a run uses it."""
        return [ParamGroup(tuple(self.parameters()), muon=True)]

    def export(self, path: Path, metadata: Mapping[str, str]) -> Path:
        """`save_lora` in bf16."""
        return save_lora(self, path, metadata, dtype=torch.bfloat16)


def choose_layers(model: nn.Module, pattern: str = WAN_LAYERS) -> tuple[str, ...]:
    """Dotted names of the Linear layers whose whole name matches the regular expression.

    Raises LoraError: none does.
    """
    names = tuple(
        name for name, part in model.named_modules() if isinstance(part, nn.Linear) and re.fullmatch(pattern, name)
    )
    if not names:
        raise LoraError(f"No linear layer of this model has a name like '{pattern}': choose another module filter.")
    return names


def adapt(
    model: nn.Module,
    names: Iterable[str],
    rank: int,
    *,
    alpha: float | None = None,
    dropout: float = 0.0,
    seed: int = 0,
) -> tuple[nn.Module, Adapter]:
    """A second tree over `model`'s weights, frozen, with a trainable pair beside each named Linear; and the pairs.

    rank: 1 or more. alpha: the strength is alpha / rank; `rank` if None. dropout: share of a pair's inputs set to 0 in
    training mode, below 1. Raises LoraError: rank, alpha or dropout outside their range.
    """
    strength = float(rank if alpha is None else alpha)
    if rank < 1 or strength <= 0 or not 0 <= dropout < 1:
        raise LoraError(f"Rank {rank}, alpha {strength:g} and dropout {dropout:g} do not fit: "
                        "rank from 1, alpha above 0, dropout from 0 to below 1.")  # fmt: skip
    tree = clone_sharing_weights(model)
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for name in names:
        base = tree.get_submodule(name)
        assert isinstance(base, nn.Linear)
        pairs[name] = LoRAWeights(base, rank, strength, dropout, generator)
        _put(tree, name, LoRALinear(base, pairs[name]))
    return tree, Adapter(pairs, pairs.values())


@torch.no_grad()
def merge(model: nn.Module, adapter: Adapter) -> nn.Module:
    """A second tree over `model`'s weights in which the adapted layers have weights of their own, changed by their
    pairs in the base's precision, as core's loader does at strength 1.
    """
    tree = clone_sharing_weights(model)
    for name, pair in adapter.items():
        weight = tree.get_parameter(f"{name}.weight")
        _put(tree, f"{name}.weight", nn.Parameter(weight + pair.delta().to(weight), requires_grad=False))
    return tree


@contextmanager
def differentiable() -> Iterator[None]:
    """Inside, core's models use only operations that have gradients: its fused rotary embedding has none.

    This is the switch that core's own trainer turns; it holds for the whole process, so it goes back as it was.
    """
    import comfy.model_management

    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def save_lora(adapter: Adapter, path: Path, metadata: Mapping[str, str], *, dtype: torch.dtype = torch.float32) -> Path:
    """Write `diffusion_model.<layer>.lora_down.weight`, `.lora_up.weight` and `.alpha`, which every LoRA loader of core
    applies completely whatever layers were chosen (the style of the released files needs one certain key).

    The file is replaced whole. `metadata` goes in with `rank` and `alpha` added.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, pair in adapter.items():
        prefix = f"diffusion_model.{name}"
        tensors[f"{prefix}.lora_down.weight"] = pair.down.detach().to(dtype)
        tensors[f"{prefix}.lora_up.weight"] = pair.up.detach().to(dtype)
        # Alpha in float32: bf16 would round a strength of its own.
        tensors[f"{prefix}.alpha"] = torch.tensor(pair.alpha)
    first = adapter.items()[0][1]
    own = {"rank": str(first.down.shape[0]), "alpha": f"{first.alpha:g}"}
    return write_tensors(path, tensors, {**metadata, **own})


@torch.no_grad()
def read_lora(adapter: Adapter, path: Path) -> None:
    """Load what `save_lora` wrote into the pairs.

    Raises LoraError: the file has other layers or another rank.
    """
    state = load_file(path)
    names = {name.removeprefix("diffusion_model.").rsplit(".lora_", 1)[0] for name in state if ".lora_" in name}
    if names != {name for name, _ in adapter.items()}:
        raise LoraError(f"{path.name} has other layers than this run: take the module filter that it was trained with.")
    for name, pair in adapter.items():
        for side in ("down", "up"):
            kept: nn.Parameter = getattr(pair, side)
            saved = state[f"diffusion_model.{name}.lora_{side}.weight"]
            if saved.shape != kept.shape:
                raise LoraError(f"{path.name} has another rank than this run: take that of the file.")
            kept.copy_(saved)


def clone_sharing_weights(model: nn.Module) -> nn.Module:
    """Modules are copied, tensors are shared; parameters are frozen in the copy only.

    Tensors made in inference mode, as nodes make them, are copied: autograd refuses them for good.
    """
    memo: dict[int, Any] = {id(p): nn.Parameter(_usable(p.detach()), requires_grad=False) for p in model.parameters()}
    memo |= {id(buffer): _usable(buffer) for buffer in model.buffers()}
    return copy.deepcopy(model, memo)


def _usable(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


def _put(tree: nn.Module, name: str, value: nn.Module | nn.Parameter) -> None:
    parent, _, child = name.rpartition(".")
    setattr(tree.get_submodule(parent), child, value)
