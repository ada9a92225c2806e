"""A first-frame LoRA from models and a dataset: what the command and the node both do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...film.pixels import to_pil
from ..core.auxiliary import AuxiliaryLoss
from ..core.contact_sheet import Row, draw_sheet
from ..core.processes import main_first
from ..core.run import on_its_device
from .dataset import CastItem, fingerprint_of
from .distill import self_distill
from .encode import PLAIN, Encoders, Transition, Variant, encode_dataset
from .matcher import Example, FirstFrameMatcher, first_frame_of
from .train import FirstFrameSettings, train_lora
from .world import CastScene

_SAMPLES = 2
_SAMPLE_STEPS = 12


def train_cast(
    items: Sequence[CastItem],
    encoders: Encoders,
    settings: FirstFrameSettings,
    folder: Path,
    frames: int,
    *,
    size: tuple[int, int] | None = None,
    cut: Transition = "frames",
    shown: Sequence[Variant] = PLAIN,
    auxiliary: AuxiliaryLoss | None = None,
    prior_prompts: Sequence[str] = (),
    recombined: Sequence[CastScene] = (),
    start_from: Path | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Encode the dataset and train; returns the LoRA's file. Everything lies in `folder`, and a run that was stopped
    goes on there. frames: of each clip; prior_prompts: those of which the LoRA should change nothing;
    recombined: casts of the small world that the base films itself, learned as clips are; the other arguments as
    `encode_dataset` and `train_lora` have them.

    Raises CastDataError, LoraError: a dataset, model or recipe that does not fit; the message says what to change.
    """
    model = encoders.model
    first_frame = first_frame_of(model.model.diffusion_model, model.model.latent_format.latent_channels)
    with main_first():
        examples = encode_dataset(
            items, encoders, first_frame, frames, size, folder / "encoded", cut=cut, shown=shown, say=say
        )
        examples += self_distill(recombined, encoders, frames, folder / "encoded", say=say)
    texts = None
    if prior_prompts:
        with torch.no_grad():
            texts = torch.cat(
                [encoders.clip.encode_from_tokens(encoders.clip.tokenize(text)) for text in prior_prompts]
            )
    encoders = replace(encoders, model=on_its_device(model))
    told = {"base": encoders.name, "recipe": "first frame", "frames": str(frames), "clips": str(len(items)), "cut": cut,
            "dataset": fingerprint_of([item.text for item in items], [])}  # fmt: skip
    look = _sampler(encoders, items, examples, settings, folder / "samples")
    dit = encoders.model.model.diffusion_model
    return train_lora(
        dit,
        examples,
        settings,
        folder,
        told,
        auxiliary=auxiliary,
        prior_texts=texts,
        start_from=start_from,
        sample=look,
        say=say,
    )


def _sampler(
    encoders: Encoders, items: Sequence[CastItem], examples: list[Example], settings: FirstFrameSettings, folder: Path
) -> Callable[[int, FirstFrameMatcher], None]:
    """Draws the first clips as the LoRA films them so far, one picture a time."""

    def look(step: int, matcher: FirstFrameMatcher) -> None:
        rows = []
        for item, example in list(zip(items, examples, strict=False))[:_SAMPLES]:
            latents = matcher.sample(example, settings.band, _SAMPLE_STEPS, settings.seed)
            with torch.inference_mode():
                film = encoders.vae.decode(encoders.model.model.process_latent_out(latents[None]))[0]
            shown = film[:: max(len(film) // 6, 1)]
            rows.append(Row(item.id, item.text, [to_pil(frame) for frame in shown]))
        folder.mkdir(parents=True, exist_ok=True)
        draw_sheet(rows, folder / f"step-{step:06}.png")

    return look
