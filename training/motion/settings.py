"""The settings of a motion adapter's run, for Wan models and for the miniature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..core.lora import WAN_LAYERS
from ..core.objectives.flow_matching import SigmaRange
from ..core.settings import LoraSettings, again, setting

__all__ = ["MINIATURE", "PAPER", "MotionSettings"]


@dataclass(frozen=True)
class MotionSettings(LoraSettings):
    """trunk: "lora", "full" for all its weights, or "frozen". head: as of AdapterInfo. motion_lr: of the added layers.
    flow_first: updates that learn motion alone before both are learned. text_drop, motion_drop: shares of samples
    without prompt, and without motion input. lambda_motion: of the motion's loss; 0 trains the trunk without motion,
    for comparison.
    """

    trunk: Literal["lora", "full", "frozen"] = setting(
        "lora", help="what of the model learns", choices=("lora", "full", "frozen"),
        tooltip="lora: little memory, a small file. full: every weight, as the paper does. frozen: the layers alone.",
    )  # fmt: skip
    head: Literal["single", "separate"] = setting(
        "single", help="how motion is read off", choices=("single", "separate"), advanced=True,
        tooltip="single: by one widened projection, as published. separate: by a head of its own.",
    )  # fmt: skip
    rank: int = again(
        LoraSettings, "rank", 64, tooltip="Size of the LoRA. More: it can learn more, and the file is larger."
    )
    steps: int = again(LoraSettings, "steps", 5000, tooltip="Updates. More: better motion, more time.")
    batch: int = again(LoraSettings, "batch", 32, tooltip="Clips of each update. More: steadier, slower.")
    lr: float = again(
        LoraSettings, "lr", 1e-4, tooltip="Learning rate of the LoRA. More: faster, until it breaks. 5e-6 for full."
    )
    motion_lr: float = setting(
        3e-4, help="learning rate of the added layers", low=1e-7, high=1.0, step=1e-7, advanced=True,
        tooltip="Learning rate of the added layers, which begin at zero.",
    )  # fmt: skip
    micro_batch: int = again(
        LoraSettings, "micro_batch", 1, tooltip="Clips in one pass. More: faster, more memory; the result is the same."
    )
    weight_decay: float = again(
        LoraSettings, "weight_decay", 0.01, tooltip="More keeps the LoRA smaller, and the model closer to what it was."
    )
    max_grad_norm: float = again(
        LoraSettings, "max_grad_norm", 1.0, tooltip="Longer gradients are cut to it. Less: calmer, slower training."
    )
    layers: str = again(
        LoraSettings, "layers", WAN_LAYERS, tooltip="Regular expression on layer names: which get a LoRA. All Linear "
        "layers of the blocks as published for other Wan LoRAs.",
    )  # fmt: skip
    betas: tuple[float, float] = again(LoraSettings, "betas", (0.9, 0.99))
    warmup: int = again(LoraSettings, "warmup", 200)
    flow_first: int = setting(
        0, help="updates that learn motion alone before both", low=0, high=100_000, advanced=True,
        tooltip="Updates that learn motion alone before both: for small models, whose flow is poor at first.",
    )  # fmt: skip
    text_drop: float = setting(
        0.3, help="share of samples without prompt", low=0.0, high=1.0, step=0.01, advanced=True,
        tooltip="Share of samples without prompt, for guidance by it.",
    )  # fmt: skip
    motion_drop: float = setting(
        0.2, help="share of samples without motion input", low=0.0, high=1.0, step=0.01, advanced=True,
        tooltip="Share of samples without motion input, for inner guidance.",
    )  # fmt: skip
    motion_loss_on_drop: bool = setting(True, help="no motion loss in samples without motion input")
    lambda_motion: float = setting(1.0, help="weight of the motion's loss; 0: the trunk learns without motion")
    shift: float = setting(
        5.0, help="more trains higher noise levels more often", low=0.1, high=20.0, step=0.1, advanced=True,
        tooltip="More: higher noise levels are trained more often. The shift that you sample with.",
    )  # fmt: skip
    expert: Literal["both", "high", "low"] = setting(
        "both", help="of a high/low-noise pair", choices=("both", "high", "low"), advanced=True,
        tooltip="Of Wan 2.2 A14B train the high-noise expert: motion is decided there.",
    )  # fmt: skip
    boundary: float = setting(0.875, help="noise level at which experts change")
    few_step_rate: float = setting(0.0, help="share of samples at the noise levels of four-step sampling")

    @property
    def sigmas(self) -> SigmaRange:
        """The noise levels that are trained."""
        return SigmaRange.of(self.expert, self.boundary, self.shift)


PAPER = MotionSettings()
"""For Wan models. The paper trains everything at 5e-6, with 32 clips an update."""
MINIATURE = MotionSettings(
    rank=32, steps=3000, batch=8, micro_batch=8, lr=1e-3, motion_lr=3e-3, warmup=50, final_lr_ratio=0.05,
    checkpointing=False, flow_first=200, few_step_rate=0.25, save_every=0, sample_every=0,
)  # fmt: skip
