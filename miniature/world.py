"""The small world: who lives in it, where, what they do, and how a moment of it is drawn.

A `Scene` is a value. `render` is a pure function of a scene and of points in time; beside the picture it gives the mask
of every character and the exact optical flow, because everything that moves is a textured layer under an affine map.
Nothing here is random: `miniature.stories` draws scenes, this file only shows them.

Units: positions in frame widths (0 left or top, 1 right or bottom), time in seconds, angles in radians, colours in
0..1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .drawing import backdrop, sprite

FPS = 16.0
SIZE = 64

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
BODIES = ("ball", "box", "cone", "star")
HEADGEAR = ("top hat", "crown", "beanie", "party hat")
PLACES = ("beach", "forest", "city", "desert", "mountains", "night")
ACTIONS = ("stands", "walks", "jumps", "spins", "sways", "stretches")
CAMERAS = ("still", "pans left", "pans right", "zooms in", "zooms out")
POSITIONS = ("left", "middle", "right")

GROUND = 0.86
"""Height of the line on which characters stand."""
CHARACTER_HEIGHT = 0.46
"""Height of a character with its headgear: the body alone is a third of the frame."""
START_X = {"left": 0.26, "middle": 0.5, "right": 0.74}
BLEND = 0.3
PAN_SPEED = 0.16
PARALLAX_FAR = 0.4
ZOOM, ZOOM_TIME = 1.4, 4.0
ZOOM_CENTRE = (0.5, 0.66)
WALK_SPEED = 0.28
SUPERSAMPLING = 2


@dataclass(frozen=True)
class Character:
    """A character's identity: the three attributes a film has to keep."""

    colour: str
    body: str
    headgear: str

    def __post_init__(self) -> None:
        for value, known in ((self.colour, COLOURS), (self.body, BODIES), (self.headgear, HEADGEAR)):
            if value not in known:
                raise ValueError(f"The small world has no '{value}'; it knows {', '.join(known)}.")


@dataclass(frozen=True)
class Actor:
    """A character in a scene. nudge: shifts the start by a few hundredths of the frame so that no two takes are equal.
    """

    character: Character
    position: str = "middle"
    nudge: float = 0.0


@dataclass(frozen=True)
class Beat:
    """From `at` seconds on every actor does its action (one per actor, in order) under this camera."""

    at: float
    actions: tuple[str, ...]
    camera: str = "still"


@dataclass(frozen=True)
class Scene:
    """One take: a place, up to two actors (none: the place alone), and beats in order of time, the first at 0."""

    place: str
    actors: tuple[Actor, ...]
    beats: tuple[Beat, ...]

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise ValueError(f"The small world has no place '{self.place}'; it knows {', '.join(PLACES)}.")
        if len(self.actors) > 2:
            raise ValueError(f"A scene has at most two actors, not {len(self.actors)}.")
        if not self.beats or self.beats[0].at != 0.0:
            raise ValueError("The first beat of a scene starts at 0 seconds.")
        for beat in self.beats:
            if len(beat.actions) != len(self.actors):
                raise ValueError("Every beat names one action for every actor.")

    def beat_at(self, time: float) -> Beat:
        """The beat that is on at `time` seconds."""
        return [beat for beat in self.beats if beat.at <= time + 1e-9][-1]


class Rendering(NamedTuple):
    """What `render` returns for T moments of a scene with N actors at `size` x `size` pixels."""

    frames: torch.Tensor
    """[T, 3, size, size] in 0..1."""
    masks: torch.Tensor
    """[T, N, size, size], coverage of each visible character in 0..1."""
    flow: torch.Tensor
    """[T, 2, size, size] in pixels: where the visible surface at a pixel is one frame (1/16 s) later."""


@dataclass(frozen=True)
class _Pose:
    """Where a sprite is: x of the feet, height above ground, lean, scale across and up, mirrored or not."""

    x: float
    lift: float = 0.0
    angle: float = 0.0
    scale_x: float = 1.0
    scale_y: float = 1.0
    facing: float = 1.0


def _walk(x: float, elapsed: float, low: float, high: float) -> tuple[float, float]:
    """To and fro between `low` and `high` from `x`, first towards the farther side; returns position and direction."""
    span = high - low
    first = 1.0 if high - x >= x - low else -1.0
    travelled = WALK_SPEED * elapsed
    # Unfold the reflections: a point on a circle of length 2 * span, going round.
    along = (x - low if first > 0 else 2 * span - (x - low)) + travelled
    along %= 2 * span
    return (low + along, 1.0) if along <= span else (low + 2 * span - along, -1.0)


def _act(action: str, x: float, elapsed: float, low: float, high: float) -> _Pose:
    if action == "walks":
        position, direction = _walk(x, elapsed, low, high)
        return _Pose(position, lift=0.025 * abs(math.sin(2 * math.pi * elapsed * 1.5)), facing=direction)
    if action == "jumps":
        phase = elapsed % 1.0
        return _Pose(x, lift=0.22 * 4 * phase * (1 - phase))
    if action == "spins":
        return _Pose(x, angle=2 * math.pi * elapsed / 2.0)
    if action == "sways":
        return _Pose(x, angle=0.42 * math.sin(2 * math.pi * elapsed / 1.5))
    if action == "stretches":
        tall = 1.0 + 0.24 * math.sin(2 * math.pi * elapsed / 1.25)
        return _Pose(x, scale_x=1.0 / tall, scale_y=tall)
    if action == "stands":
        return _Pose(x)
    raise ValueError(f"Nobody in the small world can do '{action}'; actions are {', '.join(ACTIONS)}.")


def reach(scene: Scene, index: int) -> tuple[float, float]:
    """How far left and right actor `index` walks: alone through the frame, of two each in its half."""
    if len(scene.actors) == 1:
        return 0.2, 0.8
    return (0.16, 0.4) if scene.actors[index].position == "left" else (0.6, 0.84)


def position_at(scene: Scene, index: int, time: float) -> str:
    """The position in `POSITIONS` that actor `index` is nearest to at `time` seconds; of two the left one is on
    the left wherever it walks.
    """
    if len(scene.actors) == 2:
        return scene.actors[index].position
    x = _pose(scene, index, time).x
    return min(POSITIONS, key=lambda position: abs(START_X[position] - x))


def _pose(scene: Scene, index: int, time: float) -> _Pose:
    """The pose of actor index: positions carry over from beat to beat, and a change of action takes 0.3 s."""
    actor = scene.actors[index]
    low, high = reach(scene, index)
    x = min(max(START_X[actor.position] + actor.nudge, low), high)
    before: _Pose | None = None
    for beat, following in zip(scene.beats, [*scene.beats[1:], None], strict=True):
        over = following is None or following.at > time
        moment = time if over else following.at  # type: ignore[union-attr]
        pose = _act(beat.actions[index], x, moment - beat.at, low, high)
        if before is not None and moment - beat.at < BLEND:
            pose = _between(before, pose, (moment - beat.at) / BLEND)
        if over:
            return pose
        before, x = pose, pose.x
    raise AssertionError("unreachable: the last beat never ends")


def _between(a: _Pose, b: _Pose, share: float) -> _Pose:
    share = share * share * (3 - 2 * share)
    turn = math.remainder(a.angle - b.angle, 2 * math.pi)

    def mix(p: float, q: float) -> float:
        return p + (q - p) * share

    return _Pose(
        b.x,
        mix(a.lift, b.lift),
        b.angle + turn * (1 - share),
        mix(a.scale_x, b.scale_x),
        mix(a.scale_y, b.scale_y),
        b.facing,
    )


def feet_and_head(scene: Scene, index: int, times: torch.Tensor) -> torch.Tensor:
    """Where the feet and the top of actor `index` are at `times` [T] (seconds), [T, 2, 2] as x and y in frame widths:
    how it moves and turns, without its looks.
    """
    ends = torch.tensor([[0.0, 1.0, 1.0], [0.0, -1.0, 1.0]])
    found = [
        ends @ _sprite_matrix(_pose(scene, index, moment), _camera(scene, moment)[1])[:2].T
        for moment in (float(time) for time in times)
    ]
    return torch.stack(found)


def _camera(scene: Scene, time: float) -> tuple[float, float]:
    """How far the background has scrolled (frame widths) and the zoom factor at `time`."""
    scroll, zoom = 0.0, ZOOM if scene.beats[0].camera == "zooms out" else 1.0
    for beat, following in zip(scene.beats, [*scene.beats[1:], None], strict=True):
        end = time if following is None or following.at > time else following.at
        elapsed = end - beat.at
        if beat.camera in ("pans left", "pans right"):
            scroll += PAN_SPEED * elapsed * (1 if beat.camera == "pans right" else -1)
        elif beat.camera in ("zooms in", "zooms out"):
            goal = ZOOM if beat.camera == "zooms in" else 1.0
            share = min(elapsed / ZOOM_TIME, 1.0)
            zoom += (goal - zoom) * share
        if end == time:
            break
    return scroll, zoom


def _sprite_matrix(pose: _Pose, zoom: float) -> torch.Tensor:
    """[3, 3] map from sprite space (-1..1, feet at y = 1) to the frame (0..1)."""
    half = CHARACTER_HEIGHT / 2
    middle = GROUND - half * pose.scale_y - pose.lift
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    scale = torch.tensor([[half * pose.scale_x * pose.facing, 0, 0], [0, half * pose.scale_y, 0], [0, 0, 1]])
    turn = torch.tensor([[cos, -sin, pose.x], [sin, cos, middle], [0, 0, 1.0]])
    return _zoom_matrix(zoom) @ turn @ scale


def _zoom_matrix(zoom: float) -> torch.Tensor:
    cx, cy = ZOOM_CENTRE
    return torch.tensor([[zoom, 0, cx * (1 - zoom)], [0, zoom, cy * (1 - zoom)], [0, 0, 1.0]])


def _scroll_matrix(shift: float, zoom: float) -> torch.Tensor:
    return _zoom_matrix(zoom) @ torch.tensor([[1, 0, -shift], [0, 1, 0], [0, 0, 1.0]])


@lru_cache(maxsize=8)
def _grid(size: int) -> torch.Tensor:
    """[size, size, 3] homogeneous pixel centres of the frame."""
    centres = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], dim=-1)


def _sample(texture: torch.Tensor, matrices: torch.Tensor, size: int, wrap: bool) -> torch.Tensor:
    """Show `texture` [C, h, w] under T maps [T, 3, 3] (texture space to frame); returns [T, C, size, size]."""
    back = torch.linalg.inv(matrices)
    points = torch.einsum("tij,hwj->thwi", back[:, :2], _grid(size))
    if wrap:
        # A backdrop is two frame widths wide and repeats; its texture carries one more period's start for the seam.
        x = torch.remainder(points[..., 0], 2.0)
        points = torch.stack([x / 2.5 * 2 - 1, points[..., 1] * 2 - 1], dim=-1)
        return F.grid_sample(
            texture.expand(len(matrices), -1, -1, -1), points, align_corners=False, padding_mode="border"
        )
    return F.grid_sample(texture.expand(len(matrices), -1, -1, -1), points, align_corners=False, padding_mode="zeros")


def _flow(now: torch.Tensor, later: torch.Tensor, size: int) -> torch.Tensor:
    """[T, 2, size, size] pixel motion of surfaces whose maps to the frame are `now` and 1/16 s `later`."""
    delta = later @ torch.linalg.inv(now) - torch.eye(3)
    return torch.einsum("tij,hwj->tihw", delta[:, :2], _grid(size)) * size


def render(scene: Scene, times: torch.Tensor, size: int = SIZE) -> Rendering:
    """Draw a scene at `times` (seconds, any order).

    Far scenery moves at 0.4 of the near scenery's speed when the camera pans; characters stay in frame, as when a
    camera follows them. Edges are supersampled twice in each direction on textures of a higher resolution than the
    frame.
    """
    moments = [float(t) for t in times]
    big = size * SUPERSAMPLING
    far, near = backdrop(scene.place)

    def maps(moment: float) -> list[torch.Tensor]:
        scroll, zoom = _camera(scene, moment)
        actors = [_sprite_matrix(_pose(scene, i, moment), zoom) for i in range(len(scene.actors))]
        return [_scroll_matrix(scroll * PARALLAX_FAR, zoom), _scroll_matrix(scroll, zoom), *actors]

    now = [torch.stack(layer) for layer in zip(*map(maps, moments), strict=True)]
    later = [torch.stack(layer) for layer in zip(*(maps(m + 1 / FPS) for m in moments), strict=True)]

    textures = [(far, True), (near, True)]
    textures += [(sprite(a.character.colour, a.character.body, a.character.headgear), False) for a in scene.actors]
    picture = torch.zeros(len(moments), 3, size, size)
    flow = torch.zeros(len(moments), 2, size, size)
    masks: list[torch.Tensor] = []
    for (texture, wrap), here, there in zip(textures, now, later, strict=True):
        layer = F.avg_pool2d(_sample(texture, here, big, wrap), SUPERSAMPLING)
        alpha = layer[:, 3:]
        picture = picture * (1 - alpha) + layer[:, :3]
        masks = [mask * (1 - alpha) for mask in masks]
        masks.append(alpha)
        flow = torch.where(alpha > 0.5, _flow(here, there, size), flow)
    people = torch.cat(masks[2:], dim=1) if scene.actors else picture.new_zeros(len(moments), 0, size, size)
    return Rendering(picture.clamp(0, 1), people, flow)
