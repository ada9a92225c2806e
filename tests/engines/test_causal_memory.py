"""What a reel remembers: asked with a prompt, pinned and banned, and written down block by block."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from longreel.engines.causal import CausalEngine
from longreel.engines.causal_memory import memory_log, pin_and_ban, restore
from longreel.film.kv_memory import LONGLIVE, MEMFLOW, MemoryEditError
from longreel.film.kv_memory.plot import draw_log
from longreel.film.reel.reel import Reel, ReelError, load_reel, save_reel

from .test_causal import STORY, _folders, engine, film  # noqa: F401

EAGER = replace(MEMFLOW, record_interval=1, window=9)
"""A bank that is full after four blocks."""

LONG = "\n---\n".join(
    f"seconds: 1.6, start: {start}\nA red ball {action} at the beach."
    for start, action in (("cut", "stands"), ("continue", "jumps"), ("cut", "spins"))
)


@pytest.fixture(scope="module")
def banked(engine: CausalEngine) -> CausalEngine:  # noqa: F811
    return replace(engine, memory=EAGER)


def bank_frames(reel: Reel) -> set[int]:
    memory = restore(reel)
    assert memory is not None
    return {frame for frame in memory.tensors["bank.positions"].flatten().tolist() if frame >= 0}


def test_every_block_is_written_down(banked: CausalEngine):
    reel = film(banked, LONG)
    log = memory_log(reel)
    blocks = [shot.latent_frames // 3 for shot in reel.shots]
    assert [line["shot"] for line in log] == [n for n, count in enumerate(blocks, 1) for _ in range(count)]
    assert [line["position"] for line in log] == [3 * n for n in range(1, len(log) + 1)]
    for line in log:
        assert line["sink"] == [0, 1, 2]
        assert all(len(row) <= 3 and max(row, default=0) < line["position"] for row in line["bank"])
    assert log[-1]["window"] == list(range(log[-1]["position"] - 6, log[-1]["position"]))
    assert any(line["scores"] for line in log), "a full bank has to choose"
    assert {"bank", "sink", "window"} <= json.loads(json.dumps(log[0])).keys()


def test_picks_are_written_down_under_sparse_activation(banked: CausalEngine):
    sparse = replace(banked, memory=replace(EAGER, active=2))
    log = memory_log(film(sparse, LONG))
    heads = sparse.model.model.diffusion_model.num_heads
    assert all(sum(row.values()) == 2 * heads for row in log[-1]["picks"])
    assert len(log[-1]["picks"]) == sparse.model.model.diffusion_model.num_layers


def test_the_plot_shows_each_role(banked: CausalEngine):
    log = memory_log(film(banked, LONG))
    picture = draw_log(log)
    colours = {colour for _, colour in picture.getcolors(1 << 20)}
    assert {(88, 160, 120), (90, 140, 220), (240, 160, 60)} <= colours
    assert draw_log(log, 0).tobytes() != picture.crop((0, 0, 960, 539)).tobytes()
    with pytest.raises(ValueError, match="not 99"):
        draw_log(log, 99)
    with pytest.raises(ValueError, match="film it again"):
        draw_log([])


def test_a_prompt_brings_back_what_is_remembered(banked: CausalEngine):
    reel = film(banked, LONG)
    found, images = banked.retrieve(reel, "A red ball stands.", 6)
    frames = [item.frame for item in found]
    assert set(frames) == {0, 1, 2} | bank_frames(reel)
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    assert all(item.layers == 1.0 for item in found if item.role == "sink")
    assert images.shape == (len(found), 48, 32, 3)
    first = banked.vae.decode(reel.shots[0].latents(0, 1)).reshape(-1, 48, 32, 3)[:1]
    assert torch.allclose(images[frames.index(0)], first[0], atol=1e-5)
    other, _ = banked.retrieve(reel, "A blue star spins at night.", 6)
    assert [item.score for item in other] != [item.score for item in found], "another prompt fits otherwise"
    assert len(banked.retrieve(reel, "A red ball stands.", 2)[0]) == 2


def test_scores_are_those_the_bank_is_judged_by(banked: CausalEngine):
    reel = film(
        banked, LONG + "\n---\nseconds: 1.6, start: resume\nA red ball spins at the beach.".replace("resume", "cut")
    )
    judged = [line for line in memory_log(reel) if line["shot"] == 4 and line["scores"]]
    before = Reel(reel.layout, reel.shots[:3])
    found, _ = banked.retrieve(before, "A red ball spins at the beach.", 99)
    mine = {item.frame: item.score for item in found if item.role == "bank" and item.layers == 1.0}
    # from the second block of the shot on, the bank is scored with this very prompt
    seen = judged[1]["scores"]
    for frame in set(mine) & {int(name) for row in seen for name in row}:
        held = [row[str(frame)] for row in seen if str(frame) in row]
        if len(held) == len(seen):
            assert sum(held) / len(held) == pytest.approx(mine[frame], rel=1e-2)


def test_pins_stay_and_bans_go(banked: CausalEngine, tmp_path):
    reel = film(banked, LONG)
    kept, gone = sorted(bank_frames(reel))[:2]
    steered = pin_and_ban(reel, [kept], [gone])
    assert reel.fingerprint != steered.fingerprint, "a project must film what follows anew"
    assert gone not in bank_frames(steered)
    longer = film(banked, "seconds: 6, start: continue\nA blue star spins at night.", steered)
    assert kept in bank_frames(longer)
    assert all(gone not in row for line in memory_log(longer)[-2:] for row in line["bank"])
    plain = film(banked, "seconds: 6, start: continue\nA blue star spins at night.", reel)
    assert not torch.equal(longer.latents(3), plain.latents(3))
    save_reel(steered, tmp_path / "steered.reel.safetensors")
    again = film(
        banked,
        "seconds: 6, start: continue\nA blue star spins at night.",
        load_reel(tmp_path / "steered.reel.safetensors"),
    )
    assert torch.equal(again.latents(3), longer.latents(3))
    found, _ = banked.retrieve(steered, "A red ball stands.", 99)
    assert gone not in {item.frame for item in found}
    assert [item.frame for item in found if item.pinned] == [kept]


def test_pins_are_an_edit_and_those_of_older_reels_still_hold(banked: CausalEngine):
    """Before pins were edits they stood in the shot's settings, and so in its fingerprint."""
    reel = film(banked, LONG)
    kept, gone = sorted(bank_frames(reel))[:2]
    steered = pin_and_ban(reel, [kept], [gone])
    assert steered.shots == reel.shots
    assert [(edit.after, edit.meta) for edit in steered.edits] == [(3, {"memory_edit": {"pin": [kept], "ban": [gone]}})]
    last, changes = reel.shots[-1], {"memory_edit": {"pin": [kept], "ban": [gone]}}
    old = replace(last, settings={**last.settings, **changes}, meta={**last.meta, **changes})
    before = replace(reel, shots=(*reel.shots[:-1], old))
    assert before.fingerprint == old.fingerprint != last.fingerprint
    assert bank_frames(before) == bank_frames(steered)
    text = "seconds: 1, start: continue\nA red ball jumps."
    assert torch.equal(film(banked, text, before).latents(3), film(banked, text, steered).latents(3))
    assert gone in bank_frames(pin_and_ban(before, [gone], []))


def test_the_newer_word_holds(banked: CausalEngine):
    reel = film(banked, LONG)
    frame = min(bank_frames(reel))
    assert frame in bank_frames(pin_and_ban(pin_and_ban(reel, [], [frame]), [frame], []))
    assert frame not in bank_frames(pin_and_ban(pin_and_ban(reel, [frame], []), [], [frame]))


def test_pins_that_cannot_be_obeyed(banked: CausalEngine, engine: CausalEngine):  # noqa: F811
    reel = film(banked, LONG)
    held = sorted(bank_frames(reel))
    with pytest.raises(MemoryEditError, match="Latent frame 1 is not in the memory bank"):
        pin_and_ban(reel, [1], [])
    with pytest.raises(MemoryEditError, match="both pinned and banned"):
        pin_and_ban(reel, held[:1], held[:1])
    with pytest.raises(MemoryEditError, match="pin fewer"):
        pin_and_ban(reel, held, [])
    with pytest.raises(MemoryEditError, match="no memory bank"):
        pin_and_ban(film(replace(engine, memory=LONGLIVE), LONG), [3], [])
    with pytest.raises(ReelError, match="film a shot"):
        pin_and_ban(Reel.empty(banked.layout()), [3], [])


def test_a_film_without_a_bank_goes_on(engine: CausalEngine):  # noqa: F811
    assert film(replace(engine, memory=LONGLIVE), STORY).shots[-1].latent_frames
