"""Many scenes drawn at once on a device: the pictures of `miniature.world.render`, thousands a second on a GPU.

Poses and cameras of all moments are computed together in float64, then every layer is one `grid_sample` a scene whose
moments lie below one another. Optical flow is left to `render`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from . import world
from .drawing import SPRITE, backdrop, sprite
from .world import ACTIONS, BODIES, CHARACTER_HEIGHT, COLOURS, GROUND, HEADGEAR, PLACES, SIZE, Scene

_NEVER = 1e6
"""Start in seconds of a beat that a scene does not have."""
_PIXELS = {"cuda": 1 << 25, "cpu": 1 << 22}
"""Supersampled pixels of a layer that are drawn in one go."""


class Pictures(NamedTuple):
    """What `World.render` returns for S scenes at T moments each."""

    frames: torch.Tensor
    """[S, T, 3, size, size] in 0..1."""
    masks: torch.Tensor
    """[S, T, size, size], coverage by visible characters in 0..1."""


class _Poses(NamedTuple):
    """Poses [S, N, T] as in `world`: x of the feet, height above ground, angle, scales, mirrored (-1) or not (1)."""

    x: torch.Tensor
    lift: torch.Tensor
    angle: torch.Tensor
    scale_x: torch.Tensor
    scale_y: torch.Tensor
    facing: torch.Tensor


class _Scenes(NamedTuple):
    """S scenes as tensors with at most two actors and K beats. sprites: [S, 2], the last for no actor; x, low, high:
    [S, 2]; at: [S, K] seconds; actions: [S, 2, K]; cameras: [S, K].
    """

    places: torch.Tensor
    sprites: torch.Tensor
    x: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    at: torch.Tensor
    actions: torch.Tensor
    cameras: torch.Tensor


def _tensors(scenes: Sequence[Scene], device: torch.device) -> _Scenes:
    beats = max(len(scene.beats) for scene in scenes)
    places, sprites, xs, lows, highs, ats, actions, cameras = ([] for _ in range(8))
    nobody = len(COLOURS) * len(BODIES) * len(HEADGEAR)
    for scene in scenes:
        places.append(PLACES.index(scene.place))
        ids, x, low, high = [nobody] * 2, [0.5] * 2, [0.2] * 2, [0.8] * 2
        for index, actor in enumerate(scene.actors):
            who = actor.character
            ids[index] = (COLOURS.index(who.colour) * len(BODIES) + BODIES.index(who.body)) * len(HEADGEAR)
            ids[index] += HEADGEAR.index(who.headgear)
            low[index], high[index] = world.reach(scene, index)
            x[index] = min(max(world.START_X[actor.position] + actor.nudge, low[index]), high[index])
        sprites.append(ids)
        xs.append(x)
        lows.append(low)
        highs.append(high)
        spare = beats - len(scene.beats)
        ats.append([beat.at for beat in scene.beats] + [_NEVER] * spare)
        doing = [[ACTIONS.index(action) for action in beat.actions] for beat in scene.beats]
        actions.append([[row[i] if i < len(row) else 0 for row in doing] + [0] * spare for i in range(2)])
        cameras.append([world.CAMERAS.index(beat.camera) for beat in scene.beats] + [0] * spare)

    def real(values: list) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64).to(device, non_blocking=True)

    def whole(values: list) -> torch.Tensor:
        return torch.tensor(values).to(device, non_blocking=True)

    return _Scenes(
        whole(places), whole(sprites), real(xs), real(lows), real(highs), real(ats), whole(actions), whole(cameras)
    )


def _act(actions: torch.Tensor, x: torch.Tensor, elapsed: torch.Tensor, scenes: _Scenes) -> _Poses:
    """`world._act` for actions [S, N] from x [S, N] after `elapsed` [S, 1, T]."""
    low, high, start = (part[..., None] for part in (scenes.low, scenes.high, x))
    span = high - low
    forward = high - start >= start - low
    along = torch.where(forward, start - low, 2 * span - (start - low)) + world.WALK_SPEED * elapsed
    along = torch.remainder(along, 2 * span)
    going = along <= span

    def does(name: str) -> torch.Tensor:
        return (actions == ACTIONS.index(name))[..., None]

    zero = torch.zeros_like(along)
    one = torch.ones_like(along)
    turn, phase = 2 * math.pi * elapsed, elapsed % 1.0
    place = torch.where(does("walks"), torch.where(going, low + along, low + 2 * span - along), start + zero)
    lift = torch.where(does("walks"), 0.025 * (turn * 1.5).sin().abs(), zero)
    lift = torch.where(does("jumps"), 0.22 * 4 * phase * (1 - phase), lift)
    angle = torch.where(does("spins"), turn / 2.0, zero)
    angle = torch.where(does("sways"), 0.42 * (turn / 1.5).sin(), angle)
    tall = torch.where(does("stretches"), 1.0 + 0.24 * (turn / 1.25).sin(), one)
    facing = torch.where(does("walks") & ~going, -one, one)
    return _Poses(place, lift, angle, 1.0 / tall, tall, facing)


def _between(a: _Poses, b: _Poses, share: torch.Tensor) -> _Poses:
    share = share * share * (3 - 2 * share)
    turn = a.angle - b.angle
    turn = turn - 2 * math.pi * torch.round(turn / (2 * math.pi))

    def mix(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return p + (q - p) * share

    return _Poses(
        b.x,
        mix(a.lift, b.lift),
        b.angle + turn * (1 - share),
        mix(a.scale_x, b.scale_x),
        mix(a.scale_y, b.scale_y),
        b.facing,
    )


def _poses(scenes: _Scenes, times: torch.Tensor) -> _Poses:
    """`world._pose` of every actor at `times` [S, T]."""
    beats = scenes.at.shape[1]
    x, found, before = scenes.x, None, None
    for k in range(beats):
        at = scenes.at[:, k : k + 1]
        end = scenes.at[:, k + 1 : k + 2] if k + 1 < beats else torch.full_like(at, _NEVER)
        # the last moment is the beat's end, from which the next one goes on
        moments = torch.cat([times, end], dim=1)
        elapsed = (torch.minimum(moments, end) - at).clamp(min=0)[:, None]
        pose = _act(scenes.actions[:, :, k], x, elapsed, scenes)
        if before is not None:
            blended = _between(before, pose, (elapsed / world.BLEND).clamp(max=1))
            pose = _Poses(*(torch.where(elapsed < world.BLEND, a, b) for a, b in zip(blended, pose, strict=True)))
        on = ((times >= at) & (times < end))[:, None]
        shown = _Poses(*(part[..., :-1] for part in pose))
        older = shown if found is None else found
        found = _Poses(*(torch.where(on, a, b) for a, b in zip(shown, older, strict=True)))
        before = _Poses(*(part[..., -1:] for part in pose))
        x = before.x[..., 0]
    assert found is not None
    return found


def _camera(scenes: _Scenes, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`world._camera` at `times` [S, T]: scroll and zoom, [S, T] each."""
    _, left, right, closer, wider = range(len(world.CAMERAS))
    scroll = torch.zeros_like(times)
    zoom = torch.where(scenes.cameras[:, :1] == wider, world.ZOOM, 1.0) + scroll
    beats = scenes.at.shape[1]
    for k in range(beats):
        at, camera = scenes.at[:, k : k + 1], scenes.cameras[:, k : k + 1]
        end = torch.minimum(times, scenes.at[:, k + 1 : k + 2]) if k + 1 < beats else times
        elapsed = (end - at).clamp(min=0)
        way = (camera == right).double() - (camera == left).double()
        scroll = scroll + world.PAN_SPEED * elapsed * way
        goal = torch.where(camera == closer, world.ZOOM, 1.0)
        share = (elapsed / world.ZOOM_TIME).clamp(max=1.0) * ((camera == closer) | (camera == wider))
        zoom = zoom + (goal - zoom) * share
    return scroll, zoom


class World:
    """The world's textures on a device, and how scenes are drawn with them."""

    def __init__(self, device: torch.device | str, size: int = SIZE):
        """size: height and width of the pictures in pixels."""
        self.device, self.size = torch.device(device), size
        with self.device:  # painted there; what `drawing` keeps for `render` stays on the CPU
            self.backdrops = torch.stack([torch.stack(backdrop.__wrapped__(place)) for place in PLACES])
            people = [sprite.__wrapped__(c, b, h) for c in COLOURS for b in BODIES for h in HEADGEAR]
            self.sprites = torch.stack([*people, torch.zeros(4, SPRITE, SPRITE)])
        centres = (torch.arange(size * world.SUPERSAMPLING, dtype=torch.float32) + 0.5) / (size * world.SUPERSAMPLING)
        self.centres = centres.to(self.device)

    def render(self, scenes: Sequence[Scene], times: torch.Tensor) -> Pictures:
        """Draw each of S scenes at its `times` [S, T] (seconds, any order); equal to `world.render`."""
        side = self.size * world.SUPERSAMPLING
        most = max(_PIXELS[self.device.type] // (side * side * times.shape[1]), 1)
        times = times.to(self.device, torch.float64, non_blocking=True)
        parts = [self._render(scenes[i : i + most], times[i : i + most]) for i in range(0, len(scenes), most)]
        return Pictures(torch.cat([part.frames for part in parts]), torch.cat([part.masks for part in parts]))

    def _render(self, scenes: Sequence[Scene], times: torch.Tensor) -> Pictures:
        told = _tensors(scenes, self.device)
        scroll, zoom = _camera(told, times)
        poses = _poses(told, times)
        picture = masks = None
        for layer in range(2):
            texture = self.backdrops[told.places, layer]
            drawn = self._sample(
                texture, self._scenery(scroll * (world.PARALLAX_FAR if layer == 0 else 1.0), zoom), "border"
            )
            picture = drawn[:, :, :3] if picture is None else picture * (1 - drawn[:, :, 3:]) + drawn[:, :, :3]
        assert picture is not None
        for actor in range(max(len(scene.actors) for scene in scenes)):
            pose = _Poses(*(part[:, actor] for part in poses))
            drawn = self._sample(self.sprites[told.sprites[:, actor]], self._person(pose, zoom), "zeros")
            alpha = drawn[:, :, 3]
            picture = picture * (1 - alpha[:, :, None]) + drawn[:, :, :3]
            masks = alpha if masks is None else torch.maximum(masks * (1 - alpha), alpha)
        if masks is None:
            masks = torch.zeros_like(picture[:, :, 0])
        return Pictures(picture.clamp(0, 1), masks)

    def _unzoomed(self, zoom: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the pixels of the frame lie without zoom: x [S, T, 1, W] and y [S, T, H, 1]."""
        (cx, cy), zoom = world.ZOOM_CENTRE, zoom[..., None, None].float()
        x = (self.centres - cx * (1 - zoom)) / zoom
        y = (self.centres[:, None] - cy * (1 - zoom)) / zoom
        return x, y

    def _scenery(self, scroll: torch.Tensor, zoom: torch.Tensor) -> torch.Tensor:
        """Sampling points [S, T, H, W, 2] of a backdrop; it repeats after two frame widths of its two and a half."""
        x, y = self._unzoomed(zoom)
        # fp64 until wrapped: a long pan scrolls far
        x = torch.remainder(x.double() + scroll[..., None, None], 2.0).float()
        x, y = torch.broadcast_tensors(x / 2.5 * 2 - 1, y * 2 - 1)
        return torch.stack([x, y], dim=-1)

    def _person(self, pose: _Poses, zoom: torch.Tensor) -> torch.Tensor:
        """Sampling points [S, T, H, W, 2] of a sprite in that pose."""
        pose = _Poses(*(part[..., None, None].float() for part in pose))
        x, y = self._unzoomed(zoom)
        half = CHARACTER_HEIGHT / 2
        x, y = x - pose.x, y - (GROUND - half * pose.scale_y - pose.lift)
        cos, sin = pose.angle.cos(), pose.angle.sin()
        across, up = cos * x + sin * y, cos * y - sin * x
        return torch.stack([across / (half * pose.scale_x * pose.facing), up / (half * pose.scale_y)], dim=-1)

    def _sample(self, texture: torch.Tensor, points: torch.Tensor, padding: str) -> torch.Tensor:
        """`texture` [S, 4, h, w] at `points` [S, T, H, W, 2], edges averaged: [S, T, 4, size, size]."""
        moments = points.shape[1]
        layer = F.grid_sample(texture, points.flatten(1, 2), align_corners=False, padding_mode=padding)
        small = F.avg_pool2d(layer, world.SUPERSAMPLING)
        return small.unflatten(2, (moments, self.size)).transpose(1, 2)
