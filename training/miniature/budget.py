"""The miniature's whole recipe within a time budget, on one GPU (or, for a proof, on a CPU at a small scale).

Everything is drawn, encoded and kept on the device; each stage gets a share of what is left of the budget, and its
learning rate falls by the clock, so that every machine ends in time with finished models. A stage that fails is
reported and left out: the models go on as they were before it. Finished stages are kept, so a killed run goes on with
the next.
"""

from __future__ import annotations

import json
import random
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...miniature.batch import World
from ...miniature.probe import Probe
from ..core.curves import draw_curves
from ..core.loop import Metrics, save_whole
from .dit import DitRecipe, Miniature
from .drawn import DrawnClips
from .export import (
    export_dit,
    export_latent_classifier,
    export_probe,
    export_vae,
    latent_statistics,
    read_dit,
    read_latent_classifier,
    read_probe,
    read_vae,
)
from .latent_classifier import LatentClassifier, LatentClassifierRecipe, train_latent_classifier
from .pipeline import prepare_device
from .pixel_losses import DecodedProbeLoss, feature_matching_loss
from .probe import ProbeRecipe, train_probe
from .take_decoder import TakeDecoderRecipe, train_decoder_on_takes
from .take_films import TakeTraining, step_loss, train_on_takes
from .take_sequences import TakeSequences
from .takes import Footage, TakeRecipe, Takes, film_world, load_footage, save_footage
from .vae import VaeRecipe, build_vae, train_vae

SHARES = {
    "probe": 0.06,
    "eye": 0.05,
    "vae": 0.25,
    "footage": 0.07,
    "reader": 0.03,
    "dit": 0.32,
    "sight": 0.06,
    "causal": 0.19,
    "decoder": 0.08,
}
"""Of the budget, stage by stage; what a run leaves out is shared among the others."""
_NONE, _ONE = torch.zeros(16, 1, 1, 1), torch.ones(16, 1, 1, 1)


@dataclass(frozen=True)
class BudgetRecipe:
    """`minutes` of time from the call on, pictures of `size` pixels, and the stages' recipes, whose steps the clock
    counts.
    """

    minutes: float
    size: int = 64
    shares: dict[str, float] = field(default_factory=lambda: dict(SHARES))
    probe: ProbeRecipe = field(default_factory=lambda: ProbeRecipe(steps=10**9, batch=32, frames=512))
    vae: VaeRecipe = field(default_factory=lambda: VaeRecipe(image_batch=192, clip_batch=32, likeness=0.3))
    takes: TakeRecipe = field(default_factory=TakeRecipe)
    reader: LatentClassifierRecipe = field(default_factory=lambda: LatentClassifierRecipe(steps=10**9, batch=1024))
    dit: DitRecipe = field(default_factory=DitRecipe)
    training: TakeTraining = field(default_factory=TakeTraining)
    sight: TakeTraining = field(
        default_factory=lambda: TakeTraining(rate=3e-4, muon_rate=6e-4, own_steps=0.5, after=0.0, average=0.99)
    )
    decoder: TakeDecoderRecipe = field(default_factory=TakeDecoderRecipe)
    causal_films: int = 256
    looked_at: int = 24
    seed: int = 0


def small(recipe: BudgetRecipe) -> BudgetRecipe:
    """About a hundredth of the work of each step, for a proof on a CPU."""
    light = TakeTraining(batch=2, refilmed=2, every=20)
    return replace(
        recipe,
        probe=replace(recipe.probe, clips=64, batch=2, frames=16),
        vae=replace(recipe.vae, image_batch=8, clip_batch=1, frames=9),
        takes=replace(recipe.takes, takes=8, frames=27, openings=32, spliced=4, clip=9),
        reader=replace(recipe.reader, batch=64),
        training=light,
        sight=replace(light, rate=recipe.sight.rate, muon_rate=recipe.sight.muon_rate, own_steps=0.5, after=0.0),
        decoder=replace(recipe.decoder, films=4, clips=1),
        causal_films=2,
        looked_at=2,
    )


class _Clock:
    """What is left of a budget, spent by this and earlier processes of a run, and for which stages."""

    def __init__(self, recipe: BudgetRecipe, stages: Collection[str], folder: Path):
        self.path, self.total = folder / "budget.json", 60 * recipe.minutes
        self.before = json.loads(self.path.read_text()) if self.path.exists() else 0.0
        self.began = time.monotonic()
        self.shares = {stage: recipe.shares[stage] for stage in SHARES if stage in stages}

    def left(self) -> float:
        return self.total - self.before - (time.monotonic() - self.began)

    def stage(self, name: str) -> float:
        """Seconds for a stage that begins now."""
        return max(self.left(), 1.0) * self.shares[name] / sum(self.shares.values())

    def done(self, name: str) -> None:
        self.shares.pop(name, None)
        self.path.write_text(json.dumps(self.total - self.left()))
        print(f"[{self.total - self.left():.0f} s of {self.total:.0f}] {name} is done", flush=True)


def train_within(
    recipe: BudgetRecipe,
    folder: Path,
    weights: Path,
    curves: Path,
    *,
    start_from: Path | None = None,
    keep: Collection[str] = (),
    skip: Collection[str] = (),
) -> list[str]:
    """Run all stages in `folder`, write the finished files under `weights` and the curves as `curves`. ComfyUI has been
    started. start_from: finished files whose VAE, DiT and text encoder are trained on; keep: of "probe", "eye", "vae"
    and "reader", what is taken from there as it is; skip: stages from "sight" on that are left out. Returns the stages
    that failed.
    """
    device = prepare_device()
    folder.mkdir(parents=True, exist_ok=True)
    clock = _Clock(recipe, set(SHARES) - set(keep) - set(skip), folder)
    failed: list[str] = []
    world = World(device, recipe.size)

    def stage(name: str, model: nn.Module, make: Callable[[float], Any]) -> None:
        path = folder / f"{name}.pt"
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True, map_location=device))
        elif name in clock.shares:
            before = {key: value.clone() for key, value in model.state_dict().items()}
            try:
                make(clock.stage(name))
                save_whole(path, model.state_dict())
            except Exception:
                traceback.print_exc()
                print(f"{name} failed and is left out", flush=True)
                failed.append(name)
                model.load_state_dict(before)
        model.eval()
        clock.done(name)

    def a_probe(name: str, seed: int) -> Probe:
        probe = Probe()
        if start_from and name in keep:
            read_probe(probe, start_from, name)
        small = World(device) if recipe.size != 64 else world
        stage(
            name,
            probe.to(device),
            lambda seconds: train_probe(replace(recipe.probe, seconds=seconds, seed=seed), probe, folder, name, small),
        )
        export_probe(probe, weights, name)
        return probe.requires_grad_(False)

    a_probe("probe", recipe.seed)
    # a probe of its own, of which the one that judges knows nothing
    perceptual_net = a_probe("eye", recipe.seed + 1)

    vae = build_vae(recipe.vae.width)
    if start_from:
        read_vae(vae, start_from)
    vae.to(device)
    clips = DrawnClips(world, recipe.seed)
    vae_recipe = replace(recipe.vae, images=0.0) if start_from else recipe.vae
    stage(
        "vae",
        vae,
        lambda seconds: train_vae(
            replace(vae_recipe, seconds=seconds), vae, folder, source=clips,
            unlike=lambda made, true: feature_matching_loss(perceptual_net, made, true),
        ),
    )  # fmt: skip
    if "vae" in keep:
        export_vae(vae, _NONE, _ONE, weights)
    else:
        export_vae(vae, *latent_statistics(vae, recipe.seed, 16, clips), weights)
    read_vae(vae, weights)  # with latents of zero mean and unit variance, as the file has them
    vae.to(device).requires_grad_(False)

    footage = _footage(recipe, clock, world, vae, folder)
    reader = LatentClassifier(recipe.reader.width)
    if start_from and "reader" in keep:
        reader.load_state_dict(read_latent_classifier(start_from).state_dict())
    reader.to(device)
    stage(
        "reader",
        reader,
        lambda seconds: train_latent_classifier(
            replace(recipe.reader, seconds=seconds), reader, lambda count: _frames(footage, count), folder
        ),
    )
    export_latent_classifier(reader, weights)

    torch.manual_seed(recipe.seed)
    model = Miniature(recipe.dit)
    if start_from:
        read_dit(model, start_from)
    model.to(device)
    sequences = [TakeSequences(footage, recipe.training.own_share)]

    def learn(told: TakeTraining, seconds: float, name: str, probe_loss: DecodedProbeLoss | None = None) -> None:
        sequences[0] = train_on_takes(
            told, model, reader, footage, folder, seconds=seconds, probe_loss=probe_loss, name=name
        )

    stage("dit", model, lambda seconds: learn(recipe.training, seconds, "dit"))
    export_dit(model, recipe.dit, weights)
    if "sight" not in skip:
        looks = DecodedProbeLoss(vae, perceptual_net, most=recipe.looked_at)
        stage("sight", model, lambda seconds: learn(recipe.sight, seconds, "sight", looks))
        export_dit(model, recipe.dit, weights)
    if "causal" not in skip:
        stage("causal", model, lambda seconds: _tune(recipe, model, reader, sequences[0], folder, seconds))
        export_dit(model, recipe.dit, weights)
    if "decoder" not in skip:
        stage(
            "decoder",
            vae,
            lambda seconds: train_decoder_on_takes(
                replace(recipe.decoder, seconds=seconds), vae, model, perceptual_net, sequences[0], world, folder
            ),
        )
        export_vae(vae, _NONE, _ONE, weights)
    draw_curves(folder, curves)
    print(f"all is done after {clock.total - clock.left():.0f} s of {clock.total:.0f}", flush=True)
    return failed


def _footage(recipe: BudgetRecipe, clock: _Clock, world: World, vae: Any, folder: Path) -> Footage:
    """Drawn and encoded: as much of the recipe as its seconds allow, by what a small part of it takes."""
    path, sizes = folder / "footage.pt", folder / "footage.json"
    shift, scale = _NONE.to(world.device), _ONE.to(world.device)
    if path.exists():
        counts = json.loads(sizes.read_text())
        footage = load_footage(path, replace(recipe.takes, **counts), world.device)
    else:
        pictures = 6000 if world.device.type == "cuda" else 400
        seconds = clock.stage("footage")
        trial, each = _part(recipe.takes, 1 / 64), 0.0
        # on a GPU the first draw also chooses kernels: the second one is timed
        for _ in range(2 if world.device.type == "cuda" else 1):
            began = time.monotonic()
            tried = film_world(trial, world, vae, shift, scale, pictures=pictures)
            float(tried.takes.latents.float().sum())
            each = (time.monotonic() - began) / trial.takes
        whole = _part(recipe.takes, min(max(0.8 * seconds / each / recipe.takes.takes, 1 / 64), 1.0))
        counts = {name: getattr(whole, name) for name in ("takes", "openings", "spliced")}
        print(f"footage: {counts}, {each:.3f} s for each of a few takes", flush=True)
        footage = film_world(whole, world, vae, shift, scale, pictures=pictures)
        sizes.write_text(json.dumps(counts))
        save_footage(footage, path)
    clock.done("footage")
    return footage


def _part(recipe: TakeRecipe, share: float) -> TakeRecipe:
    """A `share` of it, of each kind a few at least."""
    return replace(
        recipe,
        takes=max(2 * round(share * recipe.takes / 2), 2),
        openings=max(round(share * recipe.openings), 4),
        spliced=max(round(share * recipe.spliced), 2),
    )


def _frames(footage: Footage, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean latent frames, half of them of openings, and captions that name what they show."""

    def some(takes: Takes, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        device = takes.latents.device
        rows = torch.randint(len(takes), (number,), device=device)
        at = torch.randint(takes.frames, (number,), device=device)
        return takes.latents[rows, :, at].float(), takes.words[rows, takes.caption[rows, at], 0]

    (a, told_a), (b, told_b) = some(footage.takes, count // 2), some(footage.openings, count // 2)
    return torch.cat([a, b]), torch.cat([told_a, told_b])


def _tune(
    recipe: BudgetRecipe,
    model: Miniature,
    reader: nn.Module,
    sequences: TakeSequences,
    folder: Path,
    seconds: float,
) -> None:
    """Streaming long tuning (`training.causal.train`) on the takes' prompts, with batches of the base in between."""
    from ..causal.long_data import LongTakes
    from ..causal.long_tuning import CausalRecipe, tune

    takes = sequences.footage.takes
    told = replace(recipe.training, own_steps=0.0)

    def replay(step: int) -> tuple[torch.Tensor, Metrics]:
        kind, batch = sequences.draw(random.Random(f"replay {recipe.seed} {step}"), recipe.training.batch)
        return step_loss(told, model, reader, kind, batch)

    films = min(recipe.causal_films, len(takes))
    long = LongTakes(takes.latents, takes.coverage, takes.tokens, takes.caption.cpu())
    causal = CausalRecipe(steps=1_000_000, films=films, blocks=takes.frames // 3, replay=0.2)
    tune(model, long, causal, folder, reader=reader, replay=replay, budget=seconds)
