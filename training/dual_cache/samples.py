"""Training samples of FilmWeaver: chunks of shots with the caches that a film would have at that moment. Pure
functions.

A scene is a few shots that share people and places. Of each shot the whole take is encoded once; a training sample cuts
a chunk out of it as the target and builds the payload of one of the four modes: frames before it in the same shot
(temporal cache), keyframes of earlier shots (shot cache), some of them from other scenes, so that the model learns to
ignore irrelevant ones. The caches carry noise, keyframes more than history: against copied poses, and for robustness to
rollout errors.

Source: FilmWeaver, arXiv 2512.11274; rates where it is silent are ours: docs/methods/filmweaver.md, training.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...film.decode import DecodeError, Value, parse
from ...film.dual_cache import CacheError, LayoutProfile, Mode, Payload, Segment, StoryCache, build_payload
from ...film.reel.atomic import whole_file
from ..core.settings import setting

_Rates = tuple[float, float, float, float]
TEMPORAL_ONLY: _Rates = (0.2, 0.8, 0.0, 0.0)
"""Stage 1 of the curriculum: how often modes 1 to 4 are drawn."""
ALL_MODES: _Rates = (0.15, 0.25, 0.35, 0.25)
"""Stage 2."""
_PARTS = ("latents", "text", "caption", "keyframes", "embeddings")
_OPTIONAL = ("subject", "shown")
_DIMENSIONS = {"latents": 4, "text": 2, "caption": 1, "keyframes": 5, "embeddings": 2, "subject": 3, "shown": 1}


@dataclass(frozen=True, eq=False)
class SceneShot:
    """One shot of a scene.

    latents: the whole take, normalised, [C, T, h, w]. text: its encoded caption [L, D]. caption: CLIP text embedding
    [d] that keyframes are ranked by. keyframes: candidates, encoded alone, [n, C, 1, h, w], n may be 0. embeddings:
    CLIP image embeddings [n, d]. subject: where people and things of interest are, [T, h, w] of 0..1; None: not known.
    shown: multi-hot labels of the words it shows, for a classifier of latents [n]; None: unknown.
    """

    latents: torch.Tensor
    text: torch.Tensor
    caption: torch.Tensor
    keyframes: torch.Tensor
    embeddings: torch.Tensor
    subject: torch.Tensor | None = None
    shown: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class TrainingScene:
    """Shots in order. vae, text_encoder: which models made the tensors."""

    vae: str
    text_encoder: str
    shots: tuple[SceneShot, ...]


@dataclass(frozen=True)
class Curriculum:
    """How samples are drawn; every rate is a probability.

    modes: of modes 1 to 4. ranked: keyframes are the best by CLIP, else any. negative: a slot is given to another
    scene. keep_real: at least one slot then keeps its own. counts: of 1, 2, 3, ... keyframes. shot_sigma,
    temporal_sigma: bounds of the noise on keyframes and history, drawn anew for every segment. clean: no noise on
    either. drop_text, drop_cache: for guidance by each.
    """

    modes: _Rates = setting(ALL_MODES, help="how often stage 2 draws no cache, temporal, shot, both")
    ranked: float = setting(0.7, help="share of samples with the best keyframes, else any")
    negative: float = setting(
        0.25, help="share of keyframes taken from other scenes", low=0.0, high=1.0, step=0.01, advanced=True,
        tooltip="Share of keyframes taken from other scenes. More: what does not help is ignored better.",
    )  # fmt: skip
    keep_real: float = 0.8
    counts: tuple[float, ...] = (0.15, 0.25, 0.6)
    shot_sigma: tuple[float, float] = (0.1, 0.4)
    temporal_sigma: tuple[float, float] = (0.0, 0.1)
    clean: float = 0.1
    drop_text: float = 0.1
    drop_cache: float = 0.1


@dataclass(frozen=True, eq=False)
class WeaverSample:
    """One target with its caches.

    mode: that was drawn (a dropped cache leaves it). target: [C, chunk, h, w], what the loss is taken on; cache tokens
    are never in it. text: [L, D], None to train with the empty caption. scene, shot, start: where the target is.
    keyframes: (scene, shot, number) of each slot, in the payload's order. history: frames given of those before start.
    subject: the target's part of the shot's [chunk, h, w]. shown: the shot's.
    """

    mode: Mode
    target: torch.Tensor
    text: torch.Tensor | None
    payload: Payload | None
    scene: int
    shot: int
    start: int
    keyframes: tuple[tuple[int, int, int], ...]
    history: int
    subject: torch.Tensor | None
    shown: torch.Tensor | None


def draw_sample(
    scenes: Sequence[TrainingScene],
    rng: random.Random,
    curriculum: Curriculum,
    profile: LayoutProfile,
    like: WeaverSample | None = None,
) -> WeaverSample:
    """One sample; the same for the same state of `rng`.

    like: take its mode, its numbers of frames and keyframes and whether its caches were dropped, so that both fit into
    one pass.

    Raises CacheError: no shot is long enough for a mode that is asked for.
    """
    mode = like.mode if like else Mode(rng.choices((1, 2, 3, 4), curriculum.modes)[0])
    history, cast = mode in (Mode.TEMPORAL, Mode.FULL), mode in (Mode.SHOT, Mode.FULL)
    need = profile.chunk + (like.history if like else history)
    places = [
        (index, number)
        for index, scene in enumerate(scenes)
        for number, shot in enumerate(scene.shots)
        if shot.latents.shape[1] >= need
        and (not cast or len(_candidates(scene, number)) >= (len(like.keyframes) if like else 1))
        and (not like or shot.latents.shape[2:] == like.target.shape[2:])
    ]
    if not places:
        what = " that follows a shot with keyframes" if cast else ""
        raise CacheError(f"Mode {mode.value} needs a shot of {need} latent frames{what}: "
                         "add longer or more shots, or leave the mode out.")  # fmt: skip
    index, number = rng.choice(places)
    shot = scenes[index].shots[number]
    last = shot.latents.shape[1] - profile.chunk
    frames = like.history if like else rng.randint(1, min(profile.history, last)) if history else 0
    start = rng.randint(frames, last) if history else 0
    given = len(like.keyframes) if like else 0
    slots = _choose_keyframes(scenes, index, number, rng, curriculum, profile, given) if cast else []
    payload = sample_payload(scenes, shot.latents[:, start - frames : start], slots, rng, curriculum, profile)
    dropped = like.payload is None if like else rng.random() < curriculum.drop_cache
    return WeaverSample(
        mode=mode,
        target=shot.latents[:, start : start + profile.chunk],
        text=None if rng.random() < curriculum.drop_text else shot.text,
        payload=None if dropped else payload,
        scene=index,
        shot=number,
        start=start,
        keyframes=tuple(slots),
        history=frames,
        subject=None if shot.subject is None else shot.subject[start : start + profile.chunk],
        shown=shot.shown,
    )


def rank_keyframes(scene: TrainingScene, number: int) -> list[tuple[int, int]]:
    """(shot, number) of all keyframes of the shots before, by cosine to the shot's caption, best first."""
    candidates = _candidates(scene, number)
    images = torch.stack([scene.shots[shot].embeddings[one] for shot, one in candidates]).float()
    scores = F.cosine_similarity(images, scene.shots[number].caption.float()[None])
    return [candidates[place] for place in scores.argsort(descending=True, stable=True).tolist()]


def save_scene(scene: TrainingScene, path: Path) -> None:
    """Write a scene as one safetensors file, replaced whole; latents and keyframes in bf16."""
    halves = ("latents", "keyframes", "text")
    tensors = {
        f"shot{number}.{part}": getattr(shot, part).to(torch.bfloat16 if part in halves else torch.float32).contiguous()
        for number, shot in enumerate(scene.shots)
        for part in _PARTS
    }
    for number, shot in enumerate(scene.shots):
        for part in _OPTIONAL:
            if (value := getattr(shot, part)) is not None:
                tensors[f"shot{number}.{part}"] = value.to(torch.bfloat16).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"vae": scene.vae, "text_encoder": scene.text_encoder, "shots": json.dumps(len(scene.shots))}
    with whole_file(path) as unfinished:
        save_file(tensors, unfinished, metadata=told)


def load_scenes(folder: Path) -> list[TrainingScene]:
    """All scenes of a folder, in float32, by name.

    Raises CacheError: there is none, a file is no scene, or they were made by several VAEs or text encoders.
    """
    scenes: list[TrainingScene] = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            scenes.append(_load_scene(path))
        except (SafetensorError, OSError, DecodeError) as error:
            reason = str(error)[:200]
            raise CacheError(f"{path.name} is no encoded scene ({reason}): take it out of {folder}.") from error
        if (scenes[-1].vae, scenes[-1].text_encoder) != (scenes[0].vae, scenes[0].text_encoder):
            raise CacheError(f"{path.name} was made by other models than the scenes before: encode it again.")
    if not scenes:
        raise CacheError(f"{folder} has no encoded scenes: encode some first.")
    return scenes


def _load_scene(path: Path) -> TrainingScene:
    """Raises SafetensorError, OSError or DecodeError for a file that is no scene."""
    with safe_open(path, "pt") as file:
        told = Value(dict(file.metadata() or {}))
        there = set(file.keys())
        shots = []
        for number in range(parse(told["shots"].text(100)).integer(1, 1000)):
            if lacking := [part for part in _PARTS if f"shot{number}.{part}" not in there]:
                raise DecodeError(f"shot {number + 1} has no {lacking[0]}")
            parts = [part for part in (*_PARTS, *_OPTIONAL) if f"shot{number}.{part}" in there]
            tensors = {part: file.get_tensor(f"shot{number}.{part}").float() for part in parts}
            for part, tensor in tensors.items():
                if tensor.ndim != _DIMENSIONS[part]:
                    raise DecodeError(f"the {part} of shot {number + 1} are of the shape {list(tensor.shape)}")
                if not bool(torch.isfinite(tensor).all()):
                    raise DecodeError(f"the {part} of shot {number + 1} are not finite")
            shots.append(SceneShot(**tensors))
    return TrainingScene(told["vae"].text(), told["text_encoder"].text(), tuple(shots))


def _candidates(scene: TrainingScene, number: int) -> list[tuple[int, int]]:
    return [(shot, one) for shot in range(number) for one in range(len(scene.shots[shot].keyframes))]


def _choose_keyframes(
    scenes: Sequence[TrainingScene],
    index: int,
    number: int,
    rng: random.Random,
    curriculum: Curriculum,
    profile: LayoutProfile,
    count: int = 0,
) -> list[tuple[int, int, int]]:
    """(scene, shot, number) of one to `profile.keyframes` slots, in random order, some from other scenes.

    count: of slots, 0 to draw it.
    """
    ranked = rank_keyframes(scenes[index], number)
    counts = curriculum.counts[: min(profile.keyframes, len(ranked))]
    count = count or rng.choices(range(1, len(counts) + 1), counts)[0]
    own = ranked[:count] if rng.random() < curriculum.ranked else rng.sample(ranked, count)
    slots = [(index, *place) for place in own]
    # Only frames of the same size fit beside the target.
    size = scenes[index].shots[number].latents.shape[2:]
    strangers = [
        (other, shot, one)
        for other, scene in enumerate(scenes)
        for shot, taken in enumerate(scene.shots)
        for one in range(len(taken.keyframes))
        if other != index and taken.keyframes.shape[3:] == size
    ]
    if strangers:
        replaced = [rng.choice(strangers) if rng.random() < curriculum.negative else slot for slot in slots]
        if all(slot[0] != index for slot in replaced) and rng.random() < curriculum.keep_real:
            kept = rng.randrange(count)
            replaced[kept] = slots[kept]
        slots = replaced
    rng.shuffle(slots)
    return slots


def sample_payload(
    scenes: Sequence[TrainingScene],
    history: torch.Tensor,
    slots: Sequence[tuple[int, int, int]],
    rng: random.Random,
    curriculum: Curriculum,
    profile: LayoutProfile,
) -> Payload | None:
    """Segments as a film has them, each with its own noise; None without any.

    history: [C, frames, h, w], frames may be 0. slots: (scene, shot, number) of keyframes.
    """
    clean = rng.random() < curriculum.clean

    def sigma(bounds: tuple[float, float]) -> float:
        return 0.0 if clean else rng.uniform(*bounds)

    segments = [
        Segment(
            kind="shot",
            latent=scenes[scene].shots[shot].keyframes[one],
            pool=(1, 1, 1),
            times=(profile.keyframe_time(rank),),
            phase=profile.keyframe_phase(rank),
            sigma=sigma(curriculum.shot_sigma),
            noise_seed=rng.getrandbits(53),
        )
        for rank, (scene, shot, one) in enumerate(slots)
    ]
    channels, frames, height, width = history.shape
    if frames:
        before = StoryCache("", channels, height, width, profile=profile, temporal=(history,))
        buckets = build_payload(before, ())
        assert buckets is not None  # there is a history
        segments += [
            replace(segment, sigma=sigma(curriculum.temporal_sigma), noise_seed=rng.getrandbits(53))
            for segment in buckets.segments
        ]
    return Payload(profile, tuple(segments)) if segments else None
