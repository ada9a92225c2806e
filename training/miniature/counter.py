"""The counter's recipe: drawn frames with no, one, two and three characters, and frames in which something is broken.

Broken frames are made of the same sprites: bent by a smooth random displacement, smeared along a line, repeated as a
row of blobs, half erased, or a second, faint body beside a whole one. Whole ones are also blurred and noised, as
decoded pictures are, and a share of them has been through the VAE, so that softness alone does not count as broken.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ...miniature.batch import World
from ...miniature.counter import COUNTS, Counter
from ...miniature.drawing import backdrop, sprite
from ...miniature.stories import random_character, random_scene
from ...miniature.world import FPS, PLACES, SIZE, Character, render
from ...miniature.world import _Pose as Pose
from ...miniature.world import _sample as sample
from ...miniature.world import _scroll_matrix as scroll_matrix
from ...miniature.world import _sprite_matrix as sprite_matrix
from ..core.command_line import command_line
from ..core.loop import Metrics, Schedule, save_whole, train
from ..core.precision import mixed_precision
from .export import FILES
from .export import _write as write
from .param_groups import split_matrices
from .vae import draw, encode

_SHARES = (0.12, 0.36, 0.14, 0.08, 0.3)
_PART, _CLIPS, _SHIFT = 250, 20, 5
_BROKEN = ("bent", "smeared", "row", "erased", "faint", "bent pair")


@dataclass(frozen=True)
class CounterRecipe:
    """A pool of `frames` drawn frames and `clips` clips of 21 frames through the VAE is drawn once; each step shows
    `batch` of them.
    """

    frames: int = 12000
    clips: int = 400
    steps: int = 2500
    batch: int = 128
    rate: float = 1e-3
    muon_rate: float = 2e-3
    seed: int = 0


def random_pose(rng: random.Random, x: float) -> Pose:
    """Any moment of any action at `x`."""
    action = rng.choice(("stands", "jumps", "spins", "sways", "stretches"))
    facing = rng.choice((1.0, -1.0))
    if action == "jumps":
        return Pose(x, lift=rng.uniform(0, 0.22), facing=facing)
    if action == "spins":
        return Pose(x, angle=rng.uniform(-math.pi, math.pi), facing=facing)
    if action == "sways":
        return Pose(x, angle=rng.uniform(-0.42, 0.42), facing=facing)
    if action == "stretches":
        tall = rng.uniform(0.76, 1.24)
        return Pose(x, scale_x=1 / tall, scale_y=tall, facing=facing)
    return Pose(x, lift=rng.uniform(0, 0.025), facing=facing)


def _layer(character: Character, poses: Sequence[Pose], zoom: float) -> torch.Tensor:
    """[T, 4, 128, 128]: the sprite at each pose, premultiplied, twice as large as a frame."""
    texture = sprite(character.colour, character.body, character.headgear)
    return sample(texture, torch.stack([sprite_matrix(pose, zoom) for pose in poses]), 2 * SIZE, False)


def _bent(layer: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """[1, 4, h, w] displaced by smooth random vectors of up to a sixth of the frame, and blurred."""
    size = layer.shape[-1]
    coarse = rng.choice((4, 6, 9))
    shift = F.interpolate(torch.randn(1, 2, coarse, coarse), size=(size, size), mode="bicubic", align_corners=True)
    grid = F.affine_grid(torch.eye(2, 3)[None], [1, 1, size, size], align_corners=False)
    bent = F.grid_sample(layer, grid + rng.uniform(0.12, 0.3) * shift.movedim(1, -1), align_corners=False)
    return _blurred(bent, rng.choice((1, 3, 5, 9)))


def _blurred(layer: torch.Tensor, width: int) -> torch.Tensor:
    return F.avg_pool2d(layer, width, stride=1, padding=width // 2) if width > 1 else layer


def _broken(rng: random.Random, zoom: float) -> torch.Tensor:
    who, kind = random_character(rng), rng.choice(_BROKEN)
    x = rng.uniform(0.2, 0.8)
    if kind == "bent":
        return _bent(_layer(who, [random_pose(rng, x)], zoom), rng)
    if kind == "bent pair":
        other = who if rng.random() < 0.7 else random_character(rng)
        whole = _layer(who, [random_pose(rng, rng.uniform(0.16, 0.42))], zoom)
        second = _layer(other, [random_pose(rng, rng.uniform(0.58, 0.84))], zoom)
        parts = [whole, _bent(second, rng)] if rng.random() < 0.5 else [_bent(whole, rng), _bent(second, rng)]
        return _over(parts)
    if kind == "smeared":
        span, pose = rng.uniform(0.25, 0.6), random_pose(rng, x)
        places = [min(max(x + span * (i / 7 - 0.5), 0.05), 0.95) for i in range(8)]
        moved = [Pose(at, pose.lift, pose.angle, pose.scale_x, pose.scale_y, pose.facing) for at in places]
        return _layer(who, moved, zoom).mean(dim=0, keepdim=True) * rng.uniform(1.0, 1.3)
    if kind == "row":
        count = rng.randint(3, 6)
        gap, pose = rng.uniform(0.11, 0.2), random_pose(rng, 0.5)
        first = 0.5 - gap * (count - 1) / 2 + rng.uniform(-0.1, 0.1)
        small = rng.uniform(0.4, 0.8)
        row = [Pose(first + gap * i, pose.lift, pose.angle, small, small * rng.uniform(0.8, 1.2)) for i in range(count)]
        parts = list(_layer(who, row, zoom).split(1))
        return _bent(_over(parts), rng) if rng.random() < 0.5 else _blurred(_over(parts), rng.choice((3, 5, 9)))
    whole = _layer(who, [random_pose(rng, x)], zoom)
    if kind == "erased":
        # half of the body away, with a soft edge at any angle through its middle
        alpha = whole[:, 3:]
        y, across = torch.meshgrid(torch.arange(2.0 * SIZE), torch.arange(2.0 * SIZE), indexing="ij")
        weight = alpha[0, 0] / alpha.sum().clamp(min=1)
        angle = rng.uniform(-math.pi, math.pi)
        away = (across - (weight * across).sum()) * math.cos(angle) + (y - (weight * y).sum()) * math.sin(angle)
        return whole * (0.5 + away / rng.choice((2.0, 12.0, 30.0))).clamp(0, 1)
    beside = rng.uniform(0.15, x - 0.2) if x > 0.5 else rng.uniform(x + 0.2, 0.85)
    second = _layer(who, [random_pose(rng, beside)], zoom) * rng.uniform(0.35, 0.75)
    return _over([whole, second])


def _over(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    picture = parts[0]
    for part in parts[1:]:
        picture = picture * (1 - part[:, 3:]) + part
    return picture


def draw_frame(rng: random.Random, kind: str) -> torch.Tensor:
    """A frame [3, 64, 64] in 0..1 of a class of `COUNTS`, any place, camera and characters."""
    far, near = backdrop(rng.choice(PLACES))
    zoom = rng.choice((1.0, 1.0, rng.uniform(1.0, 1.4)))
    scroll = rng.uniform(-3, 3)
    behind = [scroll_matrix(0.4 * scroll, zoom)[None], scroll_matrix(scroll, zoom)[None]]
    picture = _over([sample(layer, at, 2 * SIZE, True) for layer, at in zip((far, near), behind, strict=True)])
    if kind == "broken":
        picture = _over([picture, _broken(rng, zoom)])
    elif kind != "0":
        count = int(kind)
        spots = {1: [(0.16, 0.84)], 2: [(0.14, 0.42), (0.58, 0.86)], 3: [(0.12, 0.2), (0.44, 0.56), (0.8, 0.88)]}[count]
        first = random_character(rng)
        alike = rng.random() < 0.6
        for low, high in spots:
            who = first if alike else random_character(rng)
            picture = _over([picture, _layer(who, [random_pose(rng, rng.uniform(low, high))], zoom)])
    return F.avg_pool2d(picture[:, :3], 2)[0].clamp(0, 1)


def _draw_part(told: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A part of the drawn frames, with a seed of its own: (seed, part, frames)."""
    seed, part, count = told
    torch.set_num_threads(1)
    torch.manual_seed(1000 * seed + part)
    rng = random.Random(f"counter {seed}/{part}")
    numbers = rng.choices(range(len(COUNTS)), _SHARES, k=count)
    frames = torch.stack([(draw_frame(rng, COUNTS[number]) * 255).round().byte() for number in numbers])
    return frames, torch.tensor(numbers)


def draw_pool(recipe: CounterRecipe, vae: Any | None, workers: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames [N, 3, 64, 64], uint8, and their class numbers [N], on the CPU. vae: with raw latents, on its device; None
    leaves the clips out. workers: processes that draw.
    """
    parts = [(recipe.seed, part, min(_PART, recipe.frames - first)) for part, first in _parts(recipe.frames)]
    if workers > 1:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            drawn = pool.map(_draw_part, parts, chunksize=1)
    else:
        drawn = [_draw_part(part) for part in parts]
    if vae is not None:
        drawn += _clips(recipe, vae)
    return torch.cat([frames for frames, _ in drawn]), torch.cat([numbers for _, numbers in drawn])


def _parts(frames: int) -> list[tuple[int, int]]:
    return list(enumerate(range(0, frames, _PART)))


@torch.no_grad()
def _clips(recipe: CounterRecipe, vae: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Frames of scenes with one and two characters as the VAE draws them."""
    rng = random.Random(f"counter clips {recipe.seed}")
    world, found = World(next(vae.parameters()).device), []
    for first in range(0, recipe.clips, _CLIPS):
        count = min(_CLIPS, recipe.clips - first)
        scenes = [random_scene(rng, 5.0, two=0.35, held_out=rng.random() < 0.2) for _ in range(count)]
        times = torch.tensor([[rng.uniform(0, 30)] for _ in scenes]) + torch.arange(21) / FPS
        clips = world.render(scenes, times).frames.transpose(1, 2) * 2 - 1
        with mixed_precision(clips.device):
            latents = encode(vae, clips.contiguous(memory_format=torch.channels_last_3d))
        decoded = draw(vae, latents.float()).clamp(-1, 1) / 2 + 0.5
        chosen = (decoded[:, :, ::3].transpose(1, 2).flatten(0, 1) * 255).round().byte().cpu()
        numbers = torch.tensor([len(scene.actors) for scene in scenes])
        found.append((chosen, numbers.repeat_interleave(len(chosen) // count)))
    return found


def _varied(frames: torch.Tensor) -> torch.Tensor:
    """Frames [B, 3, h, w] in 0..1 shifted by a few pixels, half of them mirrored, half a little soft, half grainy: what
    probe.py does to clips, for all at once on their device.
    """
    count, device = len(frames), frames.device
    height, width = frames.shape[2:]
    edges = F.pad(frames, (_SHIFT, _SHIFT, _SHIFT, _SHIFT), mode="replicate")
    x, y = torch.randint(2 * _SHIFT + 1, (2, count, 1), device=device)
    rows, columns = y + torch.arange(height, device=device), x + torch.arange(width, device=device)
    columns = torch.where(torch.rand(count, 1, device=device) < 0.5, columns.flip(1), columns)
    every = torch.arange(count, device=device)[:, None, None]
    moved = edges[every, :, rows[:, :, None], columns[:, None]].movedim(-1, 1)
    soft = F.avg_pool2d(moved, 3, stride=1, padding=1, count_include_pad=False)
    share, grain = torch.rand(2, count, 1, 1, 1, device=device) * (torch.rand(2, count, 1, 1, 1, device=device) < 0.5)
    return moved.lerp(soft, share) + 0.08 * grain * torch.randn_like(moved)


def train_counter(
    recipe: CounterRecipe, counter: Counter, pool: tuple[torch.Tensor, torch.Tensor], folder: Path
) -> None:
    """Train `counter` in place on `draw_pool`'s frames, on the device it is on, resuming from `folder`."""
    device = next(counter.parameters()).device
    frames, numbers = (part.to(device) for part in pool)

    def loss_at(step: int) -> tuple[torch.Tensor, Metrics]:
        chosen = torch.randint(len(frames), (recipe.batch,), device=device)
        logits, wanted = counter(_varied(frames[chosen].float() / 255)), numbers[chosen]
        return F.cross_entropy(logits, wanted), {"right": (logits.argmax(1) == wanted).float().mean()}

    schedule = Schedule(recipe.steps, recipe.rate, muon_lr=recipe.muon_rate, weight_decay=0.02, ema_decay=0.995)
    groups = split_matrices(counter)
    counter.load_state_dict(train("counter", counter, loss_at, schedule, folder, groups=groups, seed=recipe.seed))


def export_counter(counter: Counter, folder: Path) -> Path:
    """Write the counter under `folder`."""
    path = folder / FILES["counter"]
    write(counter.state_dict(), path)
    return path


def read_counter(counter: Counter, folder: Path) -> None:
    """Load what `export_counter` wrote into `counter`."""
    counter.load_state_dict({key: value.float() for key, value in load_file(folder / FILES["counter"]).items()})


@torch.no_grad()
def accuracy(counter: Counter, seed: int, frames: int = 400) -> dict[str, float]:
    """Share of frames counted right: of drawn ones of each class, and of rendered scenes that training never shows."""
    device = next(counter.parameters()).device
    rng = random.Random(f"counter test {seed}")
    torch.manual_seed(seed)
    found = {}
    for number, kind in enumerate(COUNTS):
        drawn = torch.stack([draw_frame(rng, kind) for _ in range(frames)])
        found[kind] = float((counter.count(drawn.to(device)) == number).float().mean())
    for count in (1, 2):
        right = []
        for _ in range(frames // 8):
            scene = random_scene(rng, 60.0, two=float(count - 1), held_out=True)
            right.append(counter.count(render(scene, torch.rand(8) * 60).frames.to(device)) == count)
        found[f"rendered {count}"] = float(torch.cat(right).float().mean())
    return found


def add_counter_arguments(parser: argparse.ArgumentParser) -> None:
    """`counter`'s."""
    usual = CounterRecipe()
    parser.add_argument("--folder", type=Path, required=True, help="pool, checkpoint and curve (resumed)")
    parser.add_argument("--weights", type=Path, help="of the VAE, and where the file goes; default the pack's own")
    parser.add_argument("--frames", type=int, default=usual.frames, help="drawn frames to learn from")
    parser.add_argument("--clips", type=int, default=usual.clips, help="clips through the VAE to learn from")
    parser.add_argument("--steps", type=int, default=usual.steps, help="updates")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another run")


@command_line()
def run_counter(chosen: argparse.Namespace, weights: Path) -> None:
    """`counter`. weights: the miniature's, unless named."""
    from .export import read_vae
    from .vae import VaeRecipe, build_vae

    weights = chosen.weights or weights
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = CounterRecipe(chosen.frames, chosen.clips, chosen.steps, seed=chosen.seed)
    path = chosen.folder / "counter-pool.pt"
    if path.exists():
        pool = torch.load(path, weights_only=True)
    else:
        vae = build_vae(VaeRecipe().width)
        read_vae(vae, weights)
        pool = draw_pool(recipe, vae.to(device).eval(), chosen.workers)
        chosen.folder.mkdir(parents=True, exist_ok=True)
        save_whole(path, pool)
    torch.manual_seed(recipe.seed)
    counter = Counter().to(device)
    train_counter(recipe, counter, pool, chosen.folder)
    print(export_counter(counter, weights))
    for kind, right in accuracy(counter, recipe.seed + 1, frames=96).items():
        print(f"counted right, {kind}: {right:.3f}", flush=True)
