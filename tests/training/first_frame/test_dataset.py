"""The dataset of casts: the published layout, exact canvases, a build that goes on, one sentence for bad clips."""

from __future__ import annotations

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from longreel.film.first_frame import Reference, compose
from longreel.film.pixels import from_pil, to_pil
from longreel.host.files.video import VideoWriter
from longreel.miniature.drawing import sprite
from longreel.miniature.stories import PLACE_PHRASES, is_held_out, kind_phrase
from longreel.miniature.text import tokenize
from longreel.miniature.world import COLOURS, HEADGEAR
from longreel.training.first_frame.dataset import (
    CastDataError,
    CastSettings,
    build_dataset,
    load_dataset,
    read_frames,
)
from longreel.training.first_frame.distill import casts_of, recombine
from longreel.training.first_frame.encode import PLAIN, Tint, Variant, target_frames, variants
from longreel.training.first_frame.sources import list_clips
from longreel.training.first_frame.world import (
    LEARNED,
    MINIATURE_TRIGGER,
    draw_casts,
    film_cast,
    headgear_mask,
    world_clips,
)
from PIL import Image

SMALL = CastSettings(64, 64, 9, MINIATURE_TRIGGER)


def build(folder, sources, size=SMALL):
    told = []
    return build_dataset(sources, size, folder, say=told.append), told


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    build(folder, world_clips(4, SMALL))
    return folder


def test_the_published_layout(world):
    lines = json.loads((world / "train_data.json").read_text())
    assert [set(line) for line in lines] == [{"file_path", "text", "image_path", "type"}] * 4
    for line in lines:
        assert not line["file_path"].startswith("/")
        assert line["text"].startswith(f"{MINIATURE_TRIGGER} ")
        assert line["text"].count(MINIATURE_TRIGGER) == 1
        assert line["type"] == "video"
        frames, fps = read_frames(world / line["file_path"], size=(64, 64))
        assert (len(frames), fps) == (9, 16)
    materials = sorted(
        str(path.relative_to(world / "train_materials")) for path in (world / "train_materials").rglob("*.png")
    )
    assert materials[-4:] == [f"video_clip-003/{n}.png" for n in ("main_entity", "object_0", "object_1", "object_2")]
    assert "video_clip-000/object.png" in materials
    with Image.open(world / "contact_sheet.png") as sheet:
        assert sheet.height > 4 * 256


def test_canvases_are_what_the_composer_draws_of_the_materials(world):
    for item in load_dataset(world):
        materials = world / "train_materials" / f"video_{item.id}"
        references = [
            Reference.from_image(from_pil(Image.open(path))) for path in sorted(materials.glob("object*.png"))
        ]
        plate = materials / "main_entity.png"
        drawn = compose(
            references,
            from_pil(Image.open(plate)) if plate.exists() else None,
            "paper (training)" if plate.exists() else "auto",
            (64, 64),
        )
        assert np.array_equal(np.asarray(to_pil(drawn.picture[0])), np.asarray(Image.open(item.canvas)))


def test_clips_survive_the_codec_and_start_with_the_canvas(world):
    (source, *_), item = world_clips(4, SMALL), load_dataset(world)[0]
    exact = source.load().frames[:, 1::4, 1::4]  # every pixel is stored 4 x 4 times
    stored, _ = read_frames(item.clip, 9, (64, 64))
    assert (stored - exact).abs().mean() < 4 / 255
    where = source.load().subjects[:, 1::4, 1::4]
    assert 0.05 < where.mean() < 0.5
    assert (read_frames(item.subjects, 9, (64, 64))[0] - where).abs().mean() < 8 / 255, "alone, so white"
    two = load_dataset(world)[1]
    assert two.owners == (0, 1)
    red, green, blue = read_frames(two.subjects, 9, (64, 64))[0].unbind(-1)
    assert min(red[..., :32].mean(), green[..., 32:].mean()) > 0.05, "the left one and the right one"
    assert max(red[..., 40:].mean(), green[..., :24].mean(), blue.mean()) < 0.03
    canvas = from_pil(Image.open(item.canvas))
    video = target_frames(canvas, stored)
    assert len(video) == 9
    assert all(torch.equal(video[index], canvas) for index in range(4))
    assert torch.equal(video[4:], stored[4:]), "the clip is not moved"


def test_records_from_before_subjects_were_told_apart(world, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(world, old)
    for path in (old / "items").iterdir():
        record = json.loads(path.read_text(encoding="utf-8"))
        del record["owners"]
        path.write_text(json.dumps(record), encoding="utf-8")
    assert [item.owners for item in load_dataset(old)] == [(0,) * len(item.boxes) for item in load_dataset(world)]


def test_variants_of_a_clip():
    assert variants(0, False) == PLAIN
    assert variants(0, True) == (Variant(), Variant(mirrored=True))
    plain, *others, mirrored = variants(5, True)
    assert (plain, len(others), mirrored) == (Variant(), 5, Variant(mirrored=True))
    assert variants(3, False)[1:] == tuple(others[:3]), "more ways leave the others as they are"
    assert len({tint for one in others for tint in one.tints}) == 15, "each subject in its own"
    # A pictured place tells its colours and which way round it is; of one that is only named the base knows both.
    assert [one for one in (plain, *others, mirrored) if one.fits(True, False)] == [plain, *others]
    assert [one for one in (plain, *others, mirrored) if one.fits(False, False)] == [plain, mirrored]
    # Where the cast is known, it alone changes its colours.
    assert [one for one in (plain, *others, mirrored) if one.fits(True, True)] == [plain, *others]
    assert [one for one in (plain, *others, mirrored) if one.fits(False, True)] == [plain, *others, mirrored]
    pixels = torch.rand(2, 4, 6, 3)
    red_to_green = Tint(1 / 3)
    turned = Variant((red_to_green,), mirrored=True)
    close = partial(torch.testing.assert_close, atol=1e-5, rtol=0)
    close(turned.frames(pixels), pixels.flip(2).roll(1, -1))
    close(turned.canvas(pixels[0]), pixels[0].roll(1, -1), msg="the canvas stays the way it is read")
    cast = torch.zeros(2, 4, 6, 3)
    cast[:, :2, :1, 0] = 1
    told = turned.frames(pixels, cast)
    close(told[:, :2, -1], pixels[:, :2, 0].roll(1, -1), msg="the cast in other colours")
    assert torch.equal(told[:, :, :-1], pixels.flip(2)[:, :, :-1]), "all else in its own"
    assert torch.equal(turned.canvas(pixels[0], cast[0])[2:], pixels[0, 2:])
    cast[:, 2:, :1, 1] = 1
    apart = Variant((red_to_green, Tint(2 / 3))).frames(pixels, cast)
    close(apart[:, :2, 0], pixels[:, :2, 0].roll(1, -1))
    close(apart[:, 2:, 0], pixels[:, 2:, 0].roll(2, -1))
    assert torch.equal(apart[:, :, 1:], pixels[:, :, 1:])
    assert turned.caption("On the left, on the right; leftover.") == "On the right, on the left; leftover."
    assert Variant((red_to_green,)).caption("on the left") == "on the left"


@given(hue=st.floats(0, 1), pale=st.floats(0, 1), grey=st.floats(0, 1))
def test_a_tint_keeps_greys_and_brightness(hue, pale, grey):
    pixels = torch.rand(3, 5, 3)
    tinted = Tint(hue, pale)(pixels)
    torch.testing.assert_close(tinted.amax(dim=-1), pixels.amax(dim=-1), atol=1e-5, rtol=0)
    assert (tinted.amin(dim=-1) >= pixels.amin(dim=-1) - 1e-5).all(), "never more colourful"
    flat = torch.full((3, 5, 3), grey)
    torch.testing.assert_close(Tint(hue, pale)(flat), flat, atol=1e-5, rtol=0)


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000))
@example(3600)
@example(50)
def test_casts_put_together_anew(seed):
    casts = draw_casts(LEARNED, 12, seed=seed)
    known = {actor.character for cast in casts for actor in cast.scene.actors}
    anew = recombine(casts, 24, seed=seed)
    assert anew == recombine(casts, 24, seed=seed)
    assert anew[:5] == recombine(casts, 5, seed=seed), "more leave the others as they are"
    for cast, like in zip(anew, casts * 2, strict=True):
        assert (cast.references, cast.plate, cast.scene.place) == (like.references, like.plate, like.scene.place)
        who = [actor.character for actor in cast.scene.actors]
        assert set(who) <= known
        assert len(set(who)) == len(like.scene.actors)
        assert not any(is_held_out(character, cast.scene.place) for character in who)
    assert len({repr(cast) for cast in (*casts, *anew)}) == 36


def test_only_the_small_worlds_clips_are_put_together_anew(world, tmp_path):
    items = load_dataset(world)
    assert casts_of(items) == draw_casts(LEARNED, len(items))
    with pytest.raises(CastDataError, match="build the dataset by cast-data --world"):
        casts_of(items[::-1])


def test_a_build_goes_on_and_changes_only_what_changed(tmp_path, world):
    folder = tmp_path / "data"
    shutil.copytree(world, folder)
    (folder / "items" / "clip-002.json").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "videos").iterdir()}
    _, told = build(folder, world_clips(4, SMALL))
    assert [line.split()[1] for line in told] == ["clip-002"]
    changed = {path.stem for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert changed == {"clip-002"}
    _, told = build(folder, world_clips(4, SMALL), CastSettings(64, 48, 9, MINIATURE_TRIGGER))
    assert len(told) == 4
    assert [item.id for item in build_dataset(world_clips(1, SMALL), SMALL, folder, keep_others=True, say=print)] == [
        "clip-001", "clip-002", "clip-003", "clip-000",
    ]  # fmt: skip


def test_a_published_folder_with_its_absolute_paths(world, tmp_path):
    folder = tmp_path / "Data"
    shutil.copytree(world, folder)
    lines = json.loads((folder / "train_data.json").read_text())
    for line in lines:
        line["file_path"] = f"/container/work/Data/{line['file_path']}"
        line["image_path"] = f"/container/work/Data/{line['image_path']}"
    (folder / "train_data.json").unlink()
    (folder / "train_data_mixed_Large.json").write_text(json.dumps(lines))
    ours, theirs = load_dataset(world), load_dataset(folder)
    assert [(i.id, i.text, i.clip.relative_to(world)) for i in ours] == [
        (i.id, i.text, i.clip.relative_to(folder)) for i in theirs
    ]
    theirs[1].clip.unlink()
    with pytest.raises(CastDataError, match=r"lacks /container/work/Data/videos/clip-001\.mp4"):
        load_dataset(folder)
    with pytest.raises(CastDataError, match=r"has no train_data\.json"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("held_out", [False, True])
def test_casts_of_one_to_four_named_by_what_they_are(held_out):
    import random

    from longreel.training.first_frame.world import draw_cast

    for seed in range(40):
        count = seed % 4 + 1
        cast = draw_cast(random.Random(seed), count, held_out=held_out)
        assert cast.references == count
        combinations = [is_held_out(actor.character, cast.scene.place) for actor in cast.scene.actors]
        assert combinations == [held_out] * len(combinations)
        caption = film_cast(cast, SMALL).caption
        assert tokenize(f"{MINIATURE_TRIGGER} {caption}")
        assert PLACE_PHRASES[cast.scene.place].lower() in caption.lower()
        for actor in cast.scene.actors:
            assert kind_phrase(actor.character) in caption.lower()
        assert not set(caption.lower().split()) & set(COLOURS), "that, only the picture tells"
    clip = film_cast(draw_cast(random.Random(3), 4), SMALL)
    assert len(clip.references) == 3
    assert clip.plate is not None


@pytest.mark.parametrize("headgear", HEADGEAR)
def test_headgear_is_cut_out_exactly(headgear):
    mask = headgear_mask(headgear)
    assert 0.03 < mask.float().mean() < 0.2
    white = sprite("white", "ball", headgear)
    pink = sprite("pink", "star", headgear)
    assert torch.equal((white * mask)[3] > 0, mask)
    assert torch.allclose(white * mask, pink * mask, atol=1e-4)
    body = sprite("pink", "star", headgear) * ~mask
    others = [sprite("pink", "star", other) for other in HEADGEAR if other != headgear]
    differs = torch.stack([(body - other).abs().amax(dim=0) > 0.05 for other in others]).all(dim=0) & (body[3] > 0.05)
    assert differs.float().mean() < 0.01, "nothing of it is left on the head but a soft edge"


@pytest.fixture
def own_clips(tmp_path):
    generator = np.random.default_rng(0)
    frames = torch.from_numpy(generator.random((1, 48, 96, 3), dtype=np.float32)).expand(12, -1, -1, -1)
    frames = frames * torch.linspace(1, 0.5, 12)[:, None, None, None]
    with VideoWriter(tmp_path / "kitchen.mp4", 96, 48, 24) as writer:
        writer.write(frames)
    mask = np.zeros((48, 96), np.uint8)
    mask[10:40, 20:60] = 255
    Image.fromarray(mask).save(tmp_path / "mug.png")
    Image.fromarray(generator.integers(0, 255, (30, 30, 4), dtype=np.uint8)).save(tmp_path / "hand.png")
    Image.new("RGB", (96, 48), "teal").save(tmp_path / "empty.png")
    entry = {
        "id": "kitchen", "clip": "kitchen.mp4", "caption": "A hand lifts the mug.", "plate": "empty.png",
        "entities": [
            {"name": "mug", "description": "a white mug", "mask": "mug.png"},
            {"name": "hand", "picture": "hand.png"},
            {"name": "spoon", "box": [70, 5, 20, 30]},
        ],
    }  # fmt: skip

    def write(**changes):
        (tmp_path / "cast.json").write_text(json.dumps([entry | changes]))
        return tmp_path / "cast.json"

    return write


def test_own_clips_with_masks_boxes_and_cut_outs(own_clips, tmp_path):
    settings = CastSettings(128, 80, 9)
    items, told = build(tmp_path / "data", list_clips(own_clips(), settings), settings)
    assert items[0].text == "ad23r2 the camera view suddenly changes. A hand lifts the mug."
    assert "The caption has 5 words" in told[0]
    frames, fps = read_frames(items[0].clip)
    assert (tuple(frames.shape), fps) == ((9, 80, 128, 3), 24)
    with Image.open(tmp_path / "data/train_materials/video_kitchen/object_0.png") as mug:
        assert mug.getchannel("A").getbbox() == (20, 10, 60, 40)
    with Image.open(tmp_path / "data/train_materials/video_kitchen/object_2.png") as spoon:
        assert spoon.getchannel("A").getbbox() == (70, 5, 90, 35)
    assert items[0].subjects is None
    # A picture that is replaced is noticed.
    Image.new("RGB", (96, 48), "navy").save(tmp_path / "empty.png")
    _, told = build(tmp_path / "data", list_clips(own_clips(), settings), settings)
    assert told[0].startswith("1/1 kitchen")


def test_own_clips_may_say_where_their_cast_is(own_clips, tmp_path):
    where = torch.zeros(12, 48, 96, 3)
    where[:, 10:40, 20:60] = 1
    with VideoWriter(tmp_path / "where.mp4", 96, 48, 24) as writer:
        writer.write(where)
    settings = CastSettings(96, 48, 9)
    (item,), _ = build(tmp_path / "data", list_clips(own_clips(subjects="where.mp4"), settings), settings)
    found = read_frames(item.subjects)[0].amax(dim=-1)
    assert found.shape == (9, 48, 96)
    assert (found - where[:9, ..., 0]).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"id": "../x"}, "letters, digits"),
        ({"entities": []}, "at least one entity"),
        ({"entities": [{"name": "mug"}]}, "exactly one of picture, mask, box"),
        ({"entities": [{"mask": "mug.png", "box": [0, 0, 1, 1]}]}, "exactly one of"),
        ({"clip": "../secret.mp4"}, "not beside the list"),
        ({"plate": "/etc/secret.png"}, "not beside the list"),
        ({"entities": [{"mask": "..\\secret.png"}]}, "not beside the list"),
    ],
)
def test_lists_that_make_no_sense(own_clips, changes, sentence):
    with pytest.raises(CastDataError, match=sentence):
        list_clips(own_clips(**changes), SMALL)


@pytest.mark.parametrize(
    ("changes", "settings", "sentence"),
    [
        ({}, CastSettings(128, 80, 81), "has 12 frames and 81 are needed"),
        ({"clip": "mug.png"}, CastSettings(128, 80, 9), "has 1 frames and 9"),
        ({"clip": "missing.mp4"}, CastSettings(128, 80, 9), "cannot be read as a video"),
        ({"plate": "missing.png"}, CastSettings(128, 80, 9), "cannot be read as a picture"),
        ({"entities": [{"box": [0, 0, 0, 9]}]}, CastSettings(128, 80, 9), "empty mask"),
        ({"entities": [{"box": "left"}]}, CastSettings(128, 80, 9), "four whole numbers"),
        ({"caption": " "}, CastSettings(128, 80, 9), "describe the action"),
    ],
)
def test_clips_that_cannot_be_used_are_named_and_left_out(own_clips, tmp_path, changes, settings, sentence):
    told = []
    with pytest.raises(CastDataError, match="No clip can be used"):
        build_dataset(list_clips(own_clips(**changes), settings), settings, tmp_path / "data", say=told.append)
    assert len(told) == 1
    assert told[0].startswith("kitchen is left out: ")
    assert sentence in told[0]
