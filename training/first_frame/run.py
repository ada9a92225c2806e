"""A first-frame LoRA from models and a dataset: what the command and the node both do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..core.contact_sheet import Row, draw_sheet
from ..core.objectives.flow_matching import Example, FlowMatcher, first_frame_of
from ..core.processes import main_first
from ..core.run import on_its_device
from ..miniature.latent_classifier import AuxiliaryLoss
from .dataset import CastItem, fingerprint_of, picture_of
from .distill import self_distill
from .encode import PLAIN, Encoders, Transition, Variant, encode_dataset
from .train import LoraRecipe, train_lora
from .world import CastScene

_SAMPLES = 2
_SAMPLE_STEPS = 12


def train_cast(
    items: Sequence[CastItem],
    encoders: Encoders,
    recipe: LoraRecipe,
    folder: Path,
    frames: int,
    *,
    size: tuple[int, int] | None = None,
    cut: Transition = "frames",
    shown: Sequence[Variant] = PLAIN,
    critic: AuxiliaryLoss | None = None,
    kept: Sequence[str] = (),
    recast: Sequence[CastScene] = (),
    say: Callable[[str], None] = print,
) -> Path:
    """Encode the dataset and train; returns the LoRA's file. Everything lies in `folder`, and a run that was stopped
    goes on there. frames: of each clip; kept: prompts of which the LoRA should change nothing; recast: casts of the
    small world that the base films itself, learned as clips are; the other arguments as `encode_dataset` and
    `train_lora` have them.

    Raises CastDataError, LoraError: a dataset, model or recipe that does not fit; the message says what to change.
    """
    model = encoders.model
    first_frame = first_frame_of(model.model.diffusion_model, model.model.latent_format.latent_channels)
    with main_first():
        examples = encode_dataset(
            items, encoders, first_frame, frames, size, folder / "encoded", cut=cut, shown=shown, say=say
        )
        examples += self_distill(recast, encoders, frames, folder / "encoded", say=say)
    texts = None
    if kept:
        with torch.no_grad():
            texts = torch.cat([encoders.clip.encode_from_tokens(encoders.clip.tokenize(text)) for text in kept])
    encoders = replace(encoders, model=on_its_device(model))
    told = {"base": encoders.name, "recipe": "first frame", "frames": str(frames), "clips": str(len(items)), "cut": cut,
            "dataset": fingerprint_of([item.text for item in items], [])}  # fmt: skip
    look = _sampler(encoders, items, examples, recipe, folder / "samples")
    dit = encoders.model.model.diffusion_model
    return train_lora(dit, examples, recipe, folder, told, critic=critic, kept=texts, sample=look, say=say)


def newest_sample(folder: Path) -> Path | None:
    """The picture of what a run's LoRA films, as far as it has got; None before the first one."""
    return max((folder / "samples").glob("step-*.png"), default=None)


def _sampler(
    encoders: Encoders, items: Sequence[CastItem], examples: list[Example], recipe: LoraRecipe, folder: Path
) -> Callable[[int, FlowMatcher], None]:
    """Draws the first clips as the LoRA films them so far, one picture a time."""

    def look(step: int, matcher: FlowMatcher) -> None:
        rows = []
        for item, example in list(zip(items, examples, strict=False))[:_SAMPLES]:
            latents = matcher.sample(example, recipe.band, _SAMPLE_STEPS, recipe.seed)
            with torch.inference_mode():
                film = encoders.vae.decode(encoders.model.model.process_latent_out(latents[None]))[0]
            shown = film[:: max(len(film) // 6, 1)]
            rows.append(Row(item.id, item.text, [picture_of(frame) for frame in shown]))
        folder.mkdir(parents=True, exist_ok=True)
        draw_sheet(rows, folder / f"step-{step:06}.png")

    return look
