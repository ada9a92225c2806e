"""Scenes that FilmWeaver learns from and stories it is judged by."""

from __future__ import annotations

import random

import pytest
import torch
from longreel.host.files.paths import MINIATURE_WEIGHTS
from longreel.host.media.embedder import load_embedder
from longreel.host.miniature_clip import load_miniature_clip
from longreel.miniature.batch import World
from longreel.miniature.stories import SAME, is_held_out
from longreel.miniature.world import BODIES, COLOURS, Character, render
from longreel.training.dual_cache.evaluate import character_of, continuity
from longreel.training.dual_cache.samples import load_scenes
from longreel.training.dual_cache.stories import StoryShot, draw_story
from longreel.training.dual_cache.world import WorldModels, draw_world_scene, encode_world, is_new
from longreel.training.miniature.clip import CLIP_FILE, box_of, cut_out
from longreel.training.miniature.export import FILES, read_vae
from longreel.training.miniature.vae import VaeRecipe, build_vae


def test_scenes_show_nothing_that_is_kept_for_judging():
    new = [(colour, body) for colour in COLOURS for body in BODIES if is_new(Character(colour, body, "crown"))]
    assert len(new) == 4
    said = 0
    for seed in range(200):
        shots = draw_world_scene(random.Random(seed))
        people = [actor.character for shot in shots for actor in shot.scene.actors]
        assert not any(is_new(character) for character in people)
        assert not any(is_held_out(actor.character, shot.scene.place) for shot in shots for actor in shot.scene.actors)
        assert SAME not in shots[0].caption.lower()
        called = [shot for shot in shots if SAME in shot.caption.lower()]
        said += bool(called)
        # Only where it is clear who is meant.
        assert not called or len(set(people)) == 1
    assert 60 < said < 180


def test_stories_tell_who_it_is_once():
    story = draw_story(random.Random(3))
    assert len(story) == 5
    assert SAME not in story[0].prompt.lower()
    assert all(SAME in shot.prompt.lower() for shot in story[1:])
    assert len({shot.scene.actors[0].character for shot in story}) == 1


def test_a_jump_between_chunks_is_seen():
    steady = torch.arange(45.0)[:, None, None, None].expand(45, 2, 2, 3) / 100
    assert continuity(steady) == pytest.approx(1, abs=1e-4)
    jump = steady.clone()
    jump[21:] += 0.09  # the seventh latent frame begins with picture 21
    assert continuity(jump) == pytest.approx(0.1, abs=1e-3)
    elsewhere = steady.clone()
    elsewhere[30:] += 0.09
    assert continuity(elsewhere) == 1


def test_a_character_is_cut_out_of_its_place():
    shot = StoryShot(draw_story(random.Random(5))[0].scene, "")
    drawn = render(shot.scene, torch.zeros(1))
    found = character_of(drawn.frames[0].movedim(0, -1), shot)
    wanted = cut_out(drawn.frames[0], box_of(drawn.masks[0, 0]))
    assert (found - wanted).abs().mean() < 0.12
    assert (found - drawn.frames[0]).abs().mean() > 0.12


def test_encoding_goes_on_where_it_stopped(tmp_path):
    vae = build_vae(VaeRecipe().width)
    read_vae(vae, MINIATURE_WEIGHTS)
    clip = load_miniature_clip(str(MINIATURE_WEIGHTS / FILES["text"]))
    models = WorldModels(vae.eval(), clip, load_embedder(MINIATURE_WEIGHTS / CLIP_FILE), World("cpu"))
    encode_world(models, 1, tmp_path)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    encode_world(models, 1, tmp_path)
    assert path.stat().st_mtime_ns == written
    (scene,) = load_scenes(tmp_path)
    assert len(scene.shots) == 3
    for shot in scene.shots:
        assert shot.latents.shape[0] == 16
        assert shot.latents.shape[1] in (12, 18)
        assert shot.keyframes.shape == (3, 16, 1, 8, 8)
        assert shot.embeddings.shape == (3, 128)
        assert shot.text.shape == (48, 128)
