"""The attribute probe's recipe: rendered one-character clips, some blurred or grainy so that it reads generated
frames too.

Drawing costs more than learning, so a pool of clips is drawn once and reused shifted and mirrored. The action is
learned from whole clips, the attributes from these and from single frames of many others.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from ...miniature.batch import World
from ...miniature.probe import ATTRIBUTES, SIGHT, SPACING, Probe
from ...miniature.stories import random_scene
from ...miniature.world import ACTIONS, FPS, Scene, render
from ..core.loop import Metrics, Schedule, train
from .param_groups import split_matrices

_SHIFT = 5


@dataclass(frozen=True)
class ProbeRecipe:
    """A pool of `clips` of 16 frames at 8 a second; each of `steps` (or as many as `seconds` allow) sees `batch`
    clips and `frames` single frames.
    """

    clips: int = 6000
    steps: int = 4000
    batch: int = 8
    frames: int = 128
    rate: float = 1e-3
    muon_rate: float = 2e-3
    seconds: float = 0.0
    seed: int = 0


def labels(scene: Scene, time: float) -> dict[str, int]:
    """Class numbers of a one-character scene at `time`."""
    character = scene.actors[0].character
    values = {"colour": character.colour, "body": character.body, "headgear": character.headgear, "place": scene.place}
    numbers = {name: ATTRIBUTES[name].index(value) for name, value in values.items()}
    return numbers | {"action": ACTIONS.index(scene.beat_at(time).actions[0])}


def draw_clips(
    rng: random.Random, batch: int, *, held_out: bool = False, world: World | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Clips [B, 16, 3, 64, 64] in 0..1, each within one beat, and their class numbers [B]; drawn by `world`, if there
    is one, on its device.
    """
    scenes: list[Scene] = []
    starts: list[float] = []
    known: list[dict[str, int]] = []
    span = (SIGHT - 1) * SPACING / FPS
    while len(scenes) < batch:
        scene = random_scene(rng, 6.0, two=0.0, held_out=held_out or rng.random() < 0.2)
        beat = rng.choice(scene.beats)
        later = [other.at for other in scene.beats if other.at > beat.at]
        room = (later[0] if later else beat.at + 4.0) - beat.at - span
        if room <= 0:
            continue
        start = beat.at + rng.uniform(0, room)
        scenes.append(scene)
        starts.append(start)
        known.append(labels(scene, start))
    times = torch.tensor(starts)[:, None] + torch.arange(SIGHT) * SPACING / FPS
    if world:
        clips = torch.cat(
            [world.render(scenes[i : i + 64], times[i : i + 64]).frames for i in range(0, len(scenes), 64)]
        )
    else:
        clips = torch.stack([render(scene, at).frames for scene, at in zip(scenes, times, strict=True)])
    return clips, {name: torch.tensor([k[name] for k in known], device=clips.device) for name in known[0]}


def degrade(clips: torch.Tensor) -> torch.Tensor:
    """Clips [B, T, 3, h, w] shifted by a few pixels, half of them mirrored, half a little soft, half grainy, as
    a decoder's pictures are.
    """
    moved = []
    for clip in clips:
        x, y = (int(torch.randint(2 * _SHIFT + 1, ())) for _ in range(2))
        edges = F.pad(clip, (_SHIFT, _SHIFT, _SHIFT, _SHIFT), mode="replicate")
        part = edges[..., y : y + clip.shape[-2], x : x + clip.shape[-1]]
        moved.append(part.flip(-1) if torch.rand(()) < 0.5 else part)
    clips = torch.stack(moved)
    soft = F.avg_pool2d(clips.flatten(0, 1), 3, stride=1, padding=1, count_include_pad=False).unflatten(
        0, clips.shape[:2]
    )

    def half_of_them() -> torch.Tensor:
        share, chosen = torch.rand(2, len(clips), 1, 1, 1, 1, device=clips.device)
        return share * (chosen < 0.5)

    share, grain = half_of_them(), 0.08 * half_of_them()
    return clips.lerp(soft, share) + grain * torch.randn_like(clips)


def train_probe(
    recipe: ProbeRecipe, probe: Probe, folder: Path, name: str = "probe", world: World | None = None
) -> None:
    """Train `probe` in place as `recipe` says, on the device it is on, resuming from `folder`. name: of its
    files there. world: draws the pool, if there is one.
    """
    device = next(probe.parameters()).device
    rng = random.Random(f"{recipe.seed}")
    parts: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    while len(parts) * 256 < recipe.clips:
        clips, labelled = draw_clips(rng, min(256, recipe.clips - len(parts) * 256), world=world)
        parts.append(((clips * 255).round().to(torch.uint8), labelled))
    pool = torch.cat([clips for clips, _ in parts])
    known = {key: torch.cat([labelled[key] for _, labelled in parts]) for key in parts[0][1]}

    def loss_at(step: int) -> tuple[torch.Tensor, Metrics]:
        chosen, alone = (torch.randint(len(pool), (count,)).to(pool.device) for count in (recipe.batch, recipe.frames))
        moment = torch.randint(SIGHT, (recipe.frames,)).to(pool.device)
        clips = degrade(pool[chosen].float() / 255)
        frames = torch.cat([clips.flatten(0, 1), degrade(pool[alone, moment, None].float() / 255)[:, 0]])
        features = probe.features(frames.to(device))
        action = probe.read_action(features[: clips.shape[0] * SIGHT].unflatten(0, clips.shape[:2]))
        wanted = known["action"][chosen].to(device)
        value = F.cross_entropy(action, wanted)
        metrics = {"action": (action.argmax(1) == wanted).float().mean()}
        for name, head in probe.heads.items():
            wanted = torch.cat([known[name][chosen].repeat_interleave(SIGHT), known[name][alone]]).to(device)
            logits = head(features)
            value = value + F.cross_entropy(logits, wanted)
            metrics[name] = (logits.argmax(1) == wanted).float().mean()
        return value, metrics

    schedule = Schedule(recipe.steps, recipe.rate, muon_lr=recipe.muon_rate, ema_decay=0.995, seconds=recipe.seconds)
    probe.load_state_dict(train(name, probe, loss_at, schedule, folder, groups=split_matrices(probe), seed=recipe.seed))


@torch.no_grad()
def accuracy(probe: Probe, seed: int, clips: int = 400) -> dict[str, float]:
    """Accuracy per attribute on rendered clips of combinations that training never shows."""
    rng = random.Random(f"probe test {seed}")
    right = dict.fromkeys([*ATTRIBUTES, "action"], 0.0)
    for _ in range(clips // 20):
        pictures, known = draw_clips(rng, 20, held_out=True)
        features = probe.features(pictures.flatten(0, 1))
        found = {name: head(features).argmax(1).unflatten(0, (20, SIGHT)) for name, head in probe.heads.items()}
        for name in ATTRIBUTES:
            right[name] += (found[name] == known[name][:, None]).float().mean().item()
        action = probe.read_action(features.unflatten(0, (20, SIGHT))).argmax(1)
        right["action"] += (action == known["action"]).float().mean().item()
    return {name: value / (clips // 20) for name, value in right.items()}
