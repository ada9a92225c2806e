"""What a motion adapter learns from: clips encoded together with their flow, each once, and kept on disk.

A folder holds `dataset.json` (its settings) and `clips/<name>.safetensors`: `latents` and `motion` [C, F, h, w], both
in the model's latent space, `text` [L, D], and of clips to measure by `shuffled`, the latents of the same frames in
another order, and `flow` [T - 1, 2, H, W]. Flow is found once for each clip, however often it is learned from.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from ...film.motion import AdapterInfo, FlowCodec, MotionError, check_flow, pad_flow
from ...film.motion.codec import Direction, Encoding, Padding
from ...miniature.stories import describe, random_scene
from ...miniature.world import FPS, SIZE, Beat, Scene, render

__all__ = [
    "MINIATURE",
    "Encoders",
    "MotionClip",
    "MotionDataError",
    "MotionExample",
    "MotionSource",
    "MotionSpec",
    "encode_clips",
    "load_examples",
    "moving_scene",
    "spec_of",
    "world_clips",
]


class MotionDataError(ValueError):
    """Clips that cannot be learned from as asked; the message is one sentence that says what to change."""


@dataclass(frozen=True)
class MotionSpec:
    """How clips are cut and how their flow becomes pictures; the same for a whole dataset.

    width, height: of the frames. frames: of each clip, 1 more than a multiple of the VAE's temporal compression. fps:
    frames per second, on which the speed of flow depends. encoding, sigma, direction, pad: as of AdapterInfo.
    flow_model: who finds the flow.
    """

    width: int = 256
    height: int = 256
    frames: int = 49
    fps: float = 16.0
    encoding: Encoding = "hsv_black"
    sigma: float = 0.15
    direction: Direction = "forward"
    pad: Padding = "zero_first"
    flow_model: str = "raft_large"

    @property
    def codec(self) -> FlowCodec:
        """Flow to pictures."""
        return FlowCodec(self.encoding, self.sigma)

    def told(self, info: AdapterInfo) -> AdapterInfo:
        """`info` with what the spec says of the flow."""
        return replace(
            info,
            codec=self.codec,
            flow_model=self.flow_model,
            flow_direction=self.direction,
            flow_pad=self.pad,
            flow_fps=self.fps,
        )


MINIATURE = MotionSpec(SIZE, SIZE, 81, FPS, sigma=0.045, flow_model="exact")
"""Of clips of the small world, which knows its flow. Nothing there moves by more than 4 pixels a frame, and its VAE's
errors in pictures of flow are a share of the saturation.
"""


@dataclass(frozen=True, eq=False)
class MotionClip:
    """frames: [T, H, W, 3] in 0..1. flow: [T - 1, 2, H, W] in pixels. caption: what is said of it."""

    frames: torch.Tensor
    flow: torch.Tensor
    caption: str


@dataclass(frozen=True)
class MotionSource:
    """A clip that may be made. name: of its file. fingerprint: of all that decides it. scene: if the small world shows
    it.
    """

    name: str
    fingerprint: str
    make: Callable[[], MotionClip]
    scene: Scene | None = None


@dataclass(frozen=True, eq=False)
class MotionExample:
    """An encoded clip. latents, motion: [C, F, h, w] in the model's latent space. text: [L, D]. shuffled, flow: of
    clips to measure by.
    """

    latents: torch.Tensor
    motion: torch.Tensor
    text: torch.Tensor
    shuffled: torch.Tensor | None = None
    flow: torch.Tensor | None = None


@dataclass(frozen=True)
class Encoders:
    """What ComfyUI's loaders give. name: the model's; fingerprint: of all three."""

    model: Any
    clip: Any
    vae: Any
    name: str
    fingerprint: str = ""


def world_clips(
    count: int, spec: MotionSpec = MINIATURE, *, seed: int = 0, held_out: bool = False
) -> list[MotionSource]:
    """`count` clips of the small world in motion: somebody who does something other than stand, or a moving camera.

    Those held out show combinations of character and place that the others never do.
    """
    kind = "held-out" if held_out else "clip"

    def source(index: int) -> MotionSource:
        scene = moving_scene(random.Random(f"motion {kind} {seed} {index}"), held_out=held_out)
        return MotionSource(f"{kind}-{seed}-{index:05}", _mark(repr(scene)), lambda: render_clip(scene, spec), scene)

    return [source(index) for index in range(count)]


def moving_scene(rng: random.Random, *, held_out: bool = False) -> Scene:
    """A scene of one beat in which something moves."""
    while True:
        scene = random_scene(rng, 1.0, held_out=held_out)
        beat = scene.beats[0]
        if beat.camera != "still" or any(action != "stands" for action in beat.actions):
            return Scene(scene.place, scene.actors, (Beat(0.0, beat.actions, beat.camera),))


def render_clip(scene: Scene, spec: MotionSpec) -> MotionClip:
    """The scene with its exact flow."""
    drawn = render(scene, torch.arange(spec.frames) / FPS, spec.width)
    return MotionClip(drawn.frames.movedim(1, -1), drawn.flow[:-1], describe(scene))


def encode_clips(
    sources: Sequence[MotionSource],
    encoders: Encoders,
    spec: MotionSpec,
    folder: Path,
    *,
    measured: bool = False,
    say: Callable[[str], None] = print,
) -> int:
    """Encode what `folder` does not have yet; returns how many clips were encoded now.

    measured: keep also what measuring needs. Raises MotionDataError for a folder of another spec or other models, and
    for clips of another size.
    """
    begin_dataset(spec, encoders, folder)
    made = 0
    for number, source in enumerate(sources):
        if is_made(folder, source, measured):
            continue
        clip = source.make()
        _check(clip, spec, source.name)
        tensors = {
            "latents": encode_frames(encoders, clip.frames),
            "motion": encode_frames(encoders, spec.codec.encode(pad_flow(clip.flow, spec.pad))),
            "text": encode_text(encoders, clip.caption),
        }
        if measured:
            order = torch.randperm(len(clip.frames), generator=torch.Generator().manual_seed(number))
            tensors |= {"shuffled": encode_frames(encoders, clip.frames[order]), "flow": clip.flow}
        write_clip(folder, source, clip, tensors)
        made += 1
        if made % 20 == 0:
            say(f"{number + 1} of {len(sources)} clips encoded")
    return made


def load_examples(folder: Path, names: Iterable[str] | None = None) -> tuple[list[MotionExample], torch.Tensor]:
    """The clips of a folder, all or those named, and the empty prompt [L, D].

    Raises MotionDataError if there is none.
    """
    wanted = None if names is None else set(names)
    paths = [path for path in sorted((folder / "clips").glob("*.safetensors")) if wanted is None or path.stem in wanted]
    if not paths:
        raise MotionDataError(f"There are no clips in {folder}: make them with motion-data first.")
    examples = [MotionExample(**{key: value.float() for key, value in load_file(path).items()}) for path in paths]
    return examples, load_file(folder / "empty.safetensors")["text"].float()


def spec_of(folder: Path) -> MotionSpec:
    """The spec of a folder's clips. Raises MotionDataError if it is none."""
    try:
        return MotionSpec(**json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["spec"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MotionDataError(f"{folder} is no motion dataset: make one with motion-data.") from error


@torch.inference_mode()
def encode_frames(encoders: Encoders, frames: torch.Tensor) -> torch.Tensor:
    """Latents [C, F, h, w] of frames [T, H, W, 3], as the model has them; bf16 on the CPU."""
    latents: torch.Tensor = encoders.model.model.process_latent_in(encoders.vae.encode(frames))
    return latents[0].to("cpu", torch.bfloat16).clone()


@torch.inference_mode()
def encode_text(encoders: Encoders, text: str) -> torch.Tensor:
    """A prompt [L, D]; bf16 on the CPU."""
    found: torch.Tensor = encoders.clip.encode_from_tokens(encoders.clip.tokenize(text))
    return found[0].to("cpu", torch.bfloat16).clone()


def begin_dataset(spec: MotionSpec, encoders: Encoders, folder: Path) -> None:
    """Write what the folder is made with, and the empty prompt.

    Raises MotionDataError for a folder of another spec or other models.
    """
    _remember(spec, encoders, folder)
    if not (folder / "empty.safetensors").exists():
        _write(folder / "empty.safetensors", {"text": encode_text(encoders, "")}, {})


def write_clip(folder: Path, source: MotionSource, clip: MotionClip, tensors: dict[str, torch.Tensor]) -> None:
    """Keep an encoded clip."""
    told = {"from": source.fingerprint, "caption": clip.caption}
    _write(folder / "clips" / f"{source.name}.safetensors", tensors, told)


def _remember(spec: MotionSpec, encoders: Encoders, folder: Path) -> None:
    """Write what the folder is made with, or check it."""
    path = folder / "dataset.json"
    about = {"base": encoders.name, "models": encoders.fingerprint}
    if path.exists():
        other = json.loads(path.read_text(encoding="utf-8"))
        for key, value in {**asdict(spec), **about}.items():
            kept = other["spec"].get(key, other.get(key))
            if kept != value:
                raise MotionDataError(f"The clips in {folder} have {key} {kept}, not {value}: take another folder.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"spec": asdict(spec), **about}, indent=1), encoding="utf-8")


def is_made(folder: Path, source: MotionSource, measured: bool) -> bool:
    """Whether the folder has the clip, as this source makes it."""
    path = folder / "clips" / f"{source.name}.safetensors"
    if not path.exists():
        return False
    with safe_open(path, "pt") as file:
        whole = not measured or "flow" in file.keys()  # noqa: SIM118  not a mapping
        return whole and (file.metadata() or {}).get("from") == source.fingerprint


def _check(clip: MotionClip, spec: MotionSpec, name: str) -> None:
    size = (spec.frames, spec.height, spec.width)
    if tuple(clip.frames.shape[:3]) != size:
        raise MotionDataError(f"Clip {name} is {list(clip.frames.shape[:3])}, not {list(size)}: cut it so.")
    try:
        check_flow(clip.flow, (spec.height, spec.width))
    except MotionError as error:
        raise MotionDataError(f"Clip {name}: {error}") from error


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(save({key: value.contiguous() for key, value in tensors.items()}, metadata))
    part.replace(path)


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
