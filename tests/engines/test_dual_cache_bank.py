"""The shot cache in a person's hands: marks, pictures of their own, what a prompt calls for, and its conditioning."""

from __future__ import annotations

import pytest
import torch
from longreel.engines.dual_cache import CacheGuidedEngine
from longreel.engines.dual_cache_bank import (
    add_references,
    contact_sheet,
    describe_bank,
    describe_ranking,
    edit_bank,
    keyframe_engine,
)
from longreel.engines.engine import EngineError
from longreel.film.dual_cache import CacheError
from longreel.film.reel.reel import Reel

from .test_causal import engine as causal  # noqa: F401
from .test_editing import engine, film, pictures, story  # noqa: F401


def test_keyframes_are_marked_by_number(engine: CacheGuidedEngine, story: Reel):  # noqa: F811
    bank = engine.remembered(story).bank
    reel = edit_bank(engine, story, pinned=[1], banned=[2], removed=[3], replaced=2, picture=pictures(1))
    changed = engine.remembered(reel).bank
    assert len(changed) == len(bank) - 1
    lines = describe_bank(engine.remembered(reel), reel).splitlines()
    assert lines[0].startswith("1. ")
    assert any("pinned" in line and "shot 1" in line for line in lines)
    assert any("your picture" in line for line in lines)
    shown = describe_bank(engine.remembered(story), story).splitlines()
    assert [line.split(" was shown")[0] for line in shown if "was shown" in line] == ["Shot 2", "Shot 3"]
    freed = edit_bank(engine, edit_bank(engine, story, pinned=[1], banned=[1]), freed=[1])
    assert not any(keyframe.pinned or keyframe.banned for keyframe in engine.remembered(freed).bank)
    empty = edit_bank(engine, story, clear=True)
    assert describe_bank(engine.remembered(empty), empty) == "The shot cache is empty."
    assert edit_bank(engine, story) is story
    with pytest.raises(CacheError, match="no keyframe 99"):
        edit_bank(engine, story, pinned=[99])
    with pytest.raises(CacheError, match="Connect the picture"):
        edit_bank(engine, story, replaced=1)


def test_pins_come_first_in_the_ranking(engine: CacheGuidedEngine, story: Reel):  # noqa: F811
    cache = engine.remembered(story)
    last = engine.rank(cache, "A red ball.", 3).ranking[-1].keyframe.uid
    number = [keyframe.uid for keyframe in cache.bank].index(last) + 1
    told = engine.remembered(edit_bank(engine, story, pinned=[number]))
    ranking = engine.rank(told, "A red ball.", 3)
    assert ranking.keyframes[0].uid == last
    assert describe_ranking(told, ranking).splitlines()[0].split()[1:2] == ["pinned:"]
    assert contact_sheet([keyframe.picture.image() for keyframe in ranking.keyframes], 32, 48).shape == (
        len(ranking.keyframes), 48, 32, 3,
    )  # fmt: skip
    many = contact_sheet([torch.zeros(48, 83, 3)] * 200, 832, 480)
    assert many.shape[0] == 200
    assert many.numel() * 4 <= 512 * 1024**2
    assert contact_sheet([], 32, 48).shape == (1, 48, 32, 3)


def test_references_are_told_to_the_next_shot(engine: CacheGuidedEngine):  # noqa: F811
    reel = add_references(engine, Reel.empty(engine.layout()), pictures(2), [("Ada", "Bo"), ()], True)
    assert [keyframe.characters for keyframe in engine.remembered(reel).bank] == [("Ada", "Bo"), ()]
    told = film(engine, "seconds: 0.5\nA red ball.", reel).shots[0].meta["told"]
    assert {len(chunk) for chunk in told} == {2}
    with pytest.raises(CacheError, match="2 pictures came with 1 lines"):
        add_references(engine, reel, pictures(2), [("Ada",)], True)


def test_an_engine_without_keyframes_is_refused(causal: object, engine: CacheGuidedEngine):  # noqa: F811
    assert keyframe_engine(engine) is engine
    with pytest.raises(EngineError, match="use Cache-Guided Engine"):
        keyframe_engine(causal)  # type: ignore[arg-type]


@pytest.mark.parametrize("goes_on", [False, True])
def test_conditioning_for_other_samplers_is_that_of_a_shot(engine: CacheGuidedEngine, story: Reel, goes_on: bool):  # noqa: F811
    prompt = engine.clip.encode_from_tokens_scheduled(engine.clip.tokenize("A red ball."))
    given = engine.conditioning_for(story, prompt, prompt, "A red ball.", 21, goes_on, 3)
    assert (given.frames, given.trim) == (6, 0)
    payload = given.positive[0][1]["model_conds"]["longreel_cache"].cond
    kinds = [segment.kind for segment in payload.segments]
    called = engine.rank(engine.remembered(story), "A red ball.", 2 if goes_on else 3).keyframes
    assert kinds == ["shot"] * len(called) + ["temporal"] * (3 if goes_on else 0)
    assert torch.equal(payload.segments[0].latent, called[0].latent)
    with pytest.raises(EngineError, match="no motion to go on from"):
        engine.conditioning_for(Reel.empty(engine.layout()), prompt, prompt, "A red ball.", 21, True, 3)
