"""A run's settings, each said once: a field of a dataclass, from which command-line options and node inputs are made.

    @dataclass(frozen=True)
    class MySettings(LoraSettings):
        rank: int = again(LoraSettings, "rank", 64, tooltip="...")  # another default and tooltip of a common field
        window: int = setting(3, help="frames looked back", tooltip="...", low=1, high=9)  # one of its own

    PAPER, MINIATURE = MySettings(), MySettings(rank=16, lr=1e-3)

A field without a `help` has no option, one without a `tooltip` is no input of a node.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, cast

from .loop import Schedule
from .lora import WAN_LAYERS

Precision = Literal["auto", "bf16", "float32"]
_S = TypeVar("_S")


def setting(default: Any, **told: Any) -> Any:
    """A field of settings.

    help: of its option, less the defaults. aliases: other names of the option; a run's folder may know the field by one
    of them, too. tooltip: of its node input, with `widget` (its name, if it is not the field's), `low`, `high`, `step`,
    `advanced` and `node` (further arguments). choices: of both; {name: value} where an input has names for values.
    """
    return field(default=default, metadata=told)


def again(cls: type, name: str, default: Any, **told: Any) -> Any:
    """A field of `cls` once more, with another default and other metadata."""
    return field(default=default, metadata={**_field(cls, name).metadata, **told})


@dataclass(frozen=True)
class TrainSettings:
    """What every run has.

    steps: updates of `batch` examples each, `micro_batch` of them in one pass. lr: AdamW's; muon_lr: of Muon, which
    trains the matrices where it is not 0. final_lr_ratio: of the learning rate, at the end of a cosine; 1 keeps it
    constant. max_grad_norm: longer gradients are cut to it. ema_decay: of the moving average of the weights. precision:
    "auto" is bf16 on a GPU that has it, else float32. checkpointing recomputes blocks in the backward pass: a quarter
    more time for a fraction of the memory. save_every, sample_every: steps, 0 never. seconds: a time budget, 0 for
    none; the learning rate then falls by it.
    """

    steps: int = setting(1000, help="updates", low=1, high=100_000)
    batch: int = setting(4, help="examples per update", low=1, high=256)
    micro_batch: int = setting(
        1, aliases=("at_once",), help="examples per pass: more is faster and takes more memory", low=1, high=256,
        advanced=True,
    )  # fmt: skip
    lr: float = setting(1e-4, aliases=("rate",), help="learning rate", widget="rate", low=1e-7, high=1.0, step=1e-7)
    muon_lr: float = setting(0.0, aliases=("muon_rate",), help="learning rate of Muon, for matrices, 0 for AdamW alone")
    warmup: int = setting(20, help="updates until the full learning rate", low=0, high=100_000, advanced=True)
    final_lr_ratio: float = setting(1.0, aliases=("final_share",))
    weight_decay: float = setting(
        0.01, help="more keeps the weights smaller", low=0.0, high=1.0, step=0.001, advanced=True
    )
    max_grad_norm: float = setting(
        1.0, aliases=("clip",), help="largest gradient norm", widget="clip_norm", low=0.0001, high=100.0, step=0.0001,
        advanced=True,
    )  # fmt: skip
    betas: tuple[float, float] = setting((0.9, 0.98), help="AdamW's two decay rates")
    ema_decay: float = setting(0.999, aliases=("average",))
    checkpointing: bool = setting(
        True, help="faster, for much more memory", advanced=True,
        tooltip="On: a fraction of the memory for a quarter more time. Off: faster.",
    )  # fmt: skip
    precision: Precision = setting("auto", help="of the forward pass", choices=("auto", "bf16", "float32"))
    save_every: int = setting(100, help="steps between files, 0 never")
    sample_every: int = setting(
        100, help="steps between samples, 0 never", low=0, high=100_000, advanced=True,
        tooltip="Steps between two looks at what the LoRA films; each also writes a LoRA file. 0: never.",
    )  # fmt: skip
    seconds: float = setting(0.0, help="a time budget, which ends the run if the updates do not; 0 for none")
    seed: int = setting(
        0, help="another seed is another run", low=0, high=2**31, tooltip="Another seed is another run."
    )

    @property
    def updates(self) -> int:
        """Of the whole run."""
        return self.steps

    def schedule(self) -> Schedule:
        """Length and learning rates of the run."""
        return Schedule(
            self.updates, self.lr, warmup=self.warmup, final_lr_ratio=self.final_lr_ratio, muon_lr=self.muon_lr,
            weight_decay=self.weight_decay, max_grad_norm=self.max_grad_norm, ema_decay=self.ema_decay,
            betas=self.betas, seconds=self.seconds,
        )  # fmt: skip

    def recorded(self) -> dict[str, Any]:
        """What a run's folder keeps of them, JSON-able."""
        return asdict(self)


@dataclass(frozen=True)
class LoraSettings(TrainSettings):
    """A LoRA's run. alpha: the strength is alpha / rank; None is the rank. layers: regular expression on layer names.
    dropout: share of a pair's inputs set to 0.
    """

    rank: int = setting(128, help="size of the LoRA; alpha is the same", low=1, high=512)
    alpha: float | None = setting(None)
    dropout: float = setting(
        0.0, help="share of a LoRA layer's inputs left out", low=0.0, high=0.9, step=0.01, advanced=True
    )
    layers: str = setting(WAN_LAYERS, help="regular expression on layer names: what is adapted", advanced=True)

    def recorded(self) -> dict[str, Any]:
        return super().recorded() | {"alpha": float(self.rank if self.alpha is None else self.alpha)}


@dataclass(frozen=True)
class FlowLoraSettings(LoraSettings):
    """A LoRA's run by flow matching. shift: of the noise levels, as of sampling."""

    shift: float = setting(
        5.0, help="more trains higher noise levels more often", low=0.1, high=100.0, step=0.1, advanced=True,
        tooltip="More trains higher noise levels more often. The shift that you film with.",
    )  # fmt: skip


def add_arguments(
    parser: argparse.ArgumentParser, paper: Any, miniature: Any, *, without: Collection[str] = ()
) -> None:
    """An option for each field that has a help, which says the defaults of both presets (of one class). What is left
    out on the command line is None, for `chosen_settings` to fill in. without: fields that get no option.
    """
    for one in _fields(paper):
        told = one.metadata
        if "help" not in told or one.name in without:
            continue
        usual, small = (getattr(preset, one.name) for preset in (paper, miniature))
        defaults = f"default {_spelled(usual)}" + ("" if small == usual else f", miniature {_spelled(small)}")
        options: dict[str, Any] = {"dest": one.name, "default": None, "help": f"{told['help']}: {defaults}"}
        names = [name.replace("_", "-") for name in (one.name, *told.get("aliases", ()))]
        kind = _kind(one)
        if kind == "bool":
            names = [f"no-{name}" if usual else name for name in names]
            options |= {"action": "store_const", "const": not usual, "help": told["help"]}
        elif "choices" in told and not isinstance(told["choices"], Mapping):
            options |= {"choices": told["choices"]}
        elif isinstance(usual, tuple):
            options |= {"type": float, "nargs": len(usual)}
        else:
            options["type"] = {"int": int, "float": float}.get(kind, str)
        parser.add_argument(*(f"--{name}" for name in names), **options)


def chosen_settings(chosen: argparse.Namespace, preset: _S) -> _S:
    """`preset` with what was given on the command line."""
    given = {one.name: getattr(chosen, one.name, None) for one in _fields(preset)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    given = {name: value for name, value in given.items() if value is not None}
    return cast(_S, replace(cast(Any, preset), **given))


def node_inputs(preset: Any, *names: str) -> list[Any]:
    """Inputs of a node for these fields, in this order, with the values of `preset` as defaults."""
    from comfy_api.latest import io

    made = []
    for name in names:
        one = _field(type(preset), name)
        told, value = one.metadata, getattr(preset, name)
        options: dict[str, Any] = {"tooltip": told["tooltip"], **told.get("node", {})}
        if told.get("advanced"):
            options["advanced"] = True
        kind, choices = _kind(one), told.get("choices")
        if choices:
            values = list(choices.values()) if isinstance(choices, Mapping) else list(choices)
            made.append(io.Combo.Input(
                _widget(one), options=list(choices), default=list(choices)[values.index(value)], **options
            ))  # fmt: skip
        elif kind == "bool":
            made.append(io.Boolean.Input(_widget(one), default=value, **options))
        elif kind in ("int", "float"):
            limits = {"min": told["low"], "max": told["high"]} | ({"step": told["step"]} if "step" in told else {})
            number = io.Int if kind == "int" else io.Float
            made.append(number.Input(_widget(one), default=value, **limits, **options))
        else:
            made.append(io.String.Input(_widget(one), default=value, **options))
    return made


def from_widgets(preset: _S, values: Mapping[str, Any]) -> _S:
    """`preset` with the values of the node inputs that `node_inputs` made."""
    changed = {}
    for one in _fields(preset):
        if _widget(one) in values:
            value, choices = values[_widget(one)], one.metadata.get("choices")
            changed[one.name] = choices[value] if isinstance(choices, Mapping) else value
    return cast(_S, replace(cast(Any, preset), **changed))


def _kind(one: Field[Any]) -> str:
    """The name of its type, in modules with postponed annotations and without."""
    return one.type if isinstance(one.type, str) else getattr(one.type, "__name__", "")


def _widget(one: Field[Any]) -> str:
    return str(one.metadata.get("widget", one.name))


def _fields(settings: Any) -> tuple[Field[Any], ...]:
    return fields(settings)


def _field(cls: type, name: str) -> Field[Any]:
    return next(one for one in _fields(cls) if one.name == name)


def _spelled(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(_spelled, value)) if isinstance(value, tuple) else str(value)
