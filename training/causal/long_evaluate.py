"""Whether a take holds: films of a minute and more, read every five seconds.

Single takes of held-out characters with no change of prompt and with several, and films with cuts. Read are colour,
body, headgear, place and action (the attribute probe), the number of characters (the counter) and the likeness to the
world: how far the probe's features of filmed frames lie from those of true renderings of the same words, in units of
what true renderings have among themselves. The world's own renderings, and these through the VAE, are read in the same
way: what no film surpasses.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...film.kv_memory import MEMFLOW, MemorySettings
from ...host.wan.noise import SeededNoise
from ...miniature.batch import World
from ...miniature.counter import COUNTS, Counter
from ...miniature.probe import ATTRIBUTES, SIGHT, SPACING, Probe
from ...miniature.text import pad, tokenize
from ...miniature.world import ACTIONS, FPS, Scene
from ..core.precision import mixed_precision
from ..miniature.sequences import BLOCK, FEW_STEPS
from ..miniature.vae import draw, encode
from .long_data import LongTakes, captions, long_scene
from .stream import Stream

WINDOW = 5.0
"""Seconds that are read together."""
READ = (*ATTRIBUTES, "action", "number", "likeness")
SHOT = 13
"""Blocks of a shot in a film with cuts: just under ten seconds."""
_SPAN = (SIGHT - 1) * SPACING + 1
_SETTLED = 0.6
"""Seconds after a change of action from which on it is read."""
_LEAD = 12
_REFERENCES = 48


@dataclass(frozen=True)
class Judged:
    """A film to make and to read: scenes of one character, one after the other, each with its first latent frame."""

    scenes: tuple[Scene, ...]
    starts: tuple[int, ...]
    latents: int

    def shot_at(self, latent: float) -> int:
        """Number of the scene that is on at a latent frame."""
        return sum(start <= latent for start in self.starts) - 1


def latents_in(seconds: float) -> int:
    """Latent frames, whole blocks, of a take of about `seconds`."""
    return BLOCK * max(round(seconds * FPS / 4 / BLOCK), 1)


def draw_takes(count: int, seconds: float, changes: int, seed: int) -> list[Judged]:
    """`count` single takes of held-out combinations of character and place."""
    latents = latents_in(seconds)
    scenes = [
        long_scene(random.Random(f"long {seed}/{changes}/{i}"), latents, changes, held_out=True, two=0.0)
        for i in range(count)
    ]
    return [Judged((scene,), (0,), latents) for scene in scenes]


def draw_cut_films(count: int, seconds: float, seed: int) -> list[Judged]:
    """`count` films of shots of ten seconds with a cut before each, another character and place in every one."""
    films = []
    shots = max(round(seconds / 10), 1)
    for index in range(count):
        rng = random.Random(f"long cut {seed}/{index}")
        scenes = [long_scene(rng, SHOT * BLOCK, 0, held_out=True, two=0.0) for _ in range(shots)]
        films.append(Judged(tuple(scenes), tuple(SHOT * BLOCK * i for i in range(shots)), SHOT * BLOCK * shots))
    return films


@torch.inference_mode()
def film_all(
    model: Any, films: Sequence[Judged], seeds: Sequence[int], *, settings: MemorySettings = MEMFLOW, together: int = 64
) -> Iterator[torch.Tensor]:
    """Latents [16, T, 8, 8] of each film, in the model's own space: those of host.wan.rollout with these seeds.

    model: a `training.dit.Miniature` on its device; together: films that are made at once.
    """
    for first in range(0, len(films), together):
        part = films[first : first + together]
        sources = [SeededNoise(seed) for seed in seeds[first : first + together]]
        stream = _Filming(model, part, sources, settings)
        blocks = []
        for _ in range(stream.blocks):
            new = stream.open()
            stream.close(new)
            blocks.append(new.guesses[-1].cpu())
        yield from torch.cat(blocks, dim=2)


class _Filming(Stream):
    """A stream through given films from their first blocks, with the noise of single ones."""

    def __init__(self, model: Any, films: Sequence[Judged], sources: Sequence[SeededNoise], settings: MemorySettings):
        told = [[captions(scene, film.latents) for scene in film.scenes] for film in films]
        most = max(sum(len(prompts) for prompts, _ in shots) for shots in told)
        tokens, caption = [], []
        for film, shots in zip(films, told, strict=True):
            words = [pad(tokenize(prompt)) for prompts, _ in shots for prompt in prompts]
            tokens.append(torch.stack([words[min(k, len(words) - 1)] for k in range(most)]))
            row = torch.zeros(film.latents, dtype=torch.long)
            before = 0
            for start, (prompts, own) in zip(film.starts, shots, strict=True):
                row[start:] = before + own[: film.latents - start]
                before += len(prompts)
            caption.append(row)
        takes = LongTakes(None, None, torch.stack(tokens), torch.stack(caption))
        self.sources, self.shot_starts = sources, films[0].starts
        cuts = frozenset(start // BLOCK for start in films[0].starts[1:])
        super().__init__(
            model.dit, takes, model.text, films=len(films), blocks=takes.blocks, size=(16, 8, 8), settings=settings,
            cuts=cuts,
        )  # fmt: skip

    def _chosen(self) -> torch.Tensor:
        return torch.arange(self.films)

    def _noise(self) -> torch.Tensor:
        shape = (1, self.size[0], BLOCK, *self.size[1:])
        steps = [[one(self.block, step, shape) for one in self.sources] for step in range(len(FEW_STEPS))]
        return torch.stack([torch.cat(step) for step in steps]).to(self.device)


@torch.inference_mode()
def decode_film(vae: Any, latents: torch.Tensor, cuts: Sequence[int] = (0,), piece: int = 60) -> torch.Tensor:
    """Frames [T, 3, h, w] in 0..1, on the CPU, of normalised latents [16, n, h / 8, w / 8] on the VAE's device; each of
    `cuts` begins a take anew. Pieces share 12 latent frames with the one before, beyond which the decoder hardly
    depends on them back.
    """
    frames = []
    ends = [*cuts[1:], latents.shape[1]]
    for begin, end in zip(cuts, ends, strict=True):
        for first in range(begin, end, piece):
            lead = min(_LEAD, first - begin)
            drawn = draw(vae, latents[None, :, first - lead : min(first + piece, end)])[0]
            frames.append((drawn[:, 4 * lead - 3 if lead else 0 :] / 2 + 0.5).clamp(0, 1).transpose(0, 1).cpu())
    return torch.cat(frames)


def times_of(film: Judged) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each pixel frame: the number of its shot, and its time within it in seconds."""
    shots, times = [], []
    for number, (start, end) in enumerate(zip(film.starts, [*film.starts[1:], film.latents], strict=True)):
        count = 1 + 4 * (end - start - 1)
        shots.append(torch.full((count,), number))
        times.append(torch.arange(count) / FPS)
    return torch.cat(shots), torch.cat(times)


def render_film(world: World, film: Judged) -> torch.Tensor:
    """The film as the world draws it: [T, 3, 64, 64]."""
    shots, times = times_of(film)
    drawn = [world.render([scene], times[shots == n][None]).frames[0].cpu() for n, scene in enumerate(film.scenes)]
    return torch.cat(drawn)


@torch.inference_mode()
def through_vae(vae: Any, film: Judged, frames: torch.Tensor) -> torch.Tensor:
    """Such a film encoded and decoded."""
    shots, _ = times_of(film)
    device = next(vae.parameters()).device
    latents = []
    for number in range(len(film.scenes)):
        clip = frames[shots == number].transpose(0, 1)[None].to(device) * 2 - 1
        with mixed_precision(device):
            latents.append(encode(vae, clip.contiguous(memory_format=torch.channels_last_3d)).float()[0])
    return decode_film(vae, torch.cat(latents, dim=1), film.starts)


@dataclass(frozen=True)
class Judge:
    """probe and counter, and the world drawn on their device."""

    probe: Probe
    counter: Counter
    world: World

    @torch.inference_mode()
    def read(self, film: Judged, frames: torch.Tensor) -> list[dict[str, float]]:
        """For each five seconds of a film [T, 3, 64, 64] the share of frames (windows of two seconds, for the action)
        that are as prompted; `likeness` is a ratio, 1 for what the world draws. What could not be classified is
        missing.
        """
        device = next(self.probe.parameters()).device
        shots, times = times_of(film)
        features = torch.cat([self.probe.features(part.to(device)) for part in frames.split(256)])
        right = {
            "number": torch.cat([self.counter.count(part.to(device)) for part in frames.split(256)]).cpu()
            == COUNTS.index("1")
        }
        for name, head in self.probe.heads.items():
            read = head(features).argmax(dim=1).cpu()
            right[name] = read == torch.tensor([ATTRIBUTES[name].index(_told(film, int(s))[name]) for s in shots])
        actions = list(self._actions(film, features, shots, times))
        likeness = self._likeness(film, features.cpu(), shots, times)
        rows = []
        size = round(WINDOW * FPS)
        for first in range(0, len(frames) - size // 2, size):
            row = {name: float(values[first : first + size].float().mean()) for name, values in right.items()}
            here = [ok for at, ok in actions if first <= at < first + size]
            if here:
                row["action"] = sum(here) / len(here)
            row["likeness"] = float(likeness[first : first + size].nanmean())
            rows.append(row)
        return rows

    def _actions(
        self, film: Judged, features: torch.Tensor, shots: torch.Tensor, times: torch.Tensor
    ) -> Iterator[tuple[int, bool]]:
        """Middle frame of each window of two seconds within one beat, and whether its action is the prompted one."""
        for first in range(0, len(features) - _SPAN + 1, _SPAN // 2):
            last = first + _SPAN - 1
            scene = film.scenes[int(shots[first])]
            beat = scene.beat_at(float(times[first]))
            if shots[first] != shots[last] or scene.beat_at(float(times[last])) != beat:
                continue
            if beat.at and float(times[first]) < beat.at + _SETTLED:
                continue
            read = self.probe.read_action(features[None, first : last + 1 : SPACING]).argmax(dim=1)
            yield (first + last) // 2, int(read) == ACTIONS.index(beat.actions[0])

    def _likeness(self, film: Judged, features: torch.Tensor, shots: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Of every eighth frame its distance to the nearest of the true frames of the same words, over that of true
        frames; others are NaN.
        """
        found = torch.full((len(features),), torch.nan)
        rng = random.Random("likeness")
        for number, scene in enumerate(film.scenes):
            ends = [*(beat.at for beat in scene.beats[1:]), 1e9]
            for beat, end in zip(scene.beats, ends, strict=True):
                here = ((shots == number) & (times >= beat.at) & (times < end)).nonzero().flatten()[::8]
                if not len(here):
                    continue
                low, high = float(times[here[0]]), float(times[here[-1]]) + 0.4
                actor = scene.actors[0]
                varied = [replace(scene, actors=(replace(actor, nudge=actor.nudge + nudge),)) for nudge in (0.0, 0.03)]
                drawn = torch.tensor([[rng.uniform(low, high) for _ in range(_REFERENCES)] for _ in varied])
                sets = [self.probe.features(frames).cpu() for frames in self.world.render(varied, drawn).frames]
                usual = torch.cdist(sets[1], sets[0]).amin(dim=1).mean()
                found[here] = torch.cdist(features[here], torch.cat(sets)).amin(dim=1) / usual
        return found


def _told(film: Judged, shot: int) -> dict[str, str]:
    scene = film.scenes[shot]
    who = scene.actors[0].character
    return {"colour": who.colour, "body": who.body, "headgear": who.headgear, "place": scene.place}


def by_window(read: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The table of many films: a row for each five seconds."""
    rows = {}
    for index in range(min(map(len, read))):
        here = [film[index] for film in read]
        rows[f"{WINDOW * index:.0f}-{WINDOW * (index + 1):.0f} s"] = {
            name: _mean([row[name] for row in here if name in row]) for name in READ
        }
    return rows


def first_and_last(read: Sequence[Sequence[Mapping[str, float]]], seconds: float = 10.0) -> dict[str, dict[str, float]]:
    """Means of the first and of the last `seconds` of many films, of all of them, and the worst five seconds' mean."""
    count = round(seconds / WINDOW)
    parts = {"first": slice(0, count), "last": slice(-count, None), "all": slice(None)}
    rows = {
        f"{name} {seconds:.0f} s" if name != "all" else "all": {
            key: _mean([row[key] for film in read for row in film[part] if key in row]) for key in READ
        }
        for name, part in parts.items()
    }
    table = by_window(read)
    worst = {key: min(row[key] for row in table.values()) for key in READ[:-1]}
    return rows | {"worst 5 s": worst | {"likeness": max(row["likeness"] for row in table.values())}}


def _mean(values: Sequence[float]) -> float:
    kept = [value for value in values if value == value]
    return sum(kept) / len(kept) if kept else float("nan")


def sheet(frames: torch.Tensor, path: Path) -> None:
    """Two frames a second of a film [T, 3, h, w], ten seconds a row."""
    from ..miniature.evaluate import write_strip

    pictures = frames[:: round(FPS / 2)].movedim(1, -1)
    short = -len(pictures) % 20
    pictures = torch.cat([pictures, pictures.new_ones(short, *pictures.shape[1:])])
    write_strip(pictures.unflatten(0, (-1, 20)), path)
