"""The state planner over a vision-language model: how the picture reaches it, retries, fallback, memory."""

from __future__ import annotations

import json

import comfy.model_management
import pytest
import torch
from longreel.film.instruction import InstructionError
from longreel.host.media.plan_states import StatePlanner

GOOD = json.dumps(["the lid is shut", "the lid is up", "the lid is off"])
PICTURE = torch.zeros(8, 8, 3)


class TakesImage:
    def tokenize_with_weights(self, text, return_word_ids=False, image=None, **options):
        return text, image


class TakesImages:
    def tokenize_with_weights(self, text, return_word_ids=False, images=(), **options):
        assert "image" not in options
        return text, images[0]


class TakesNeither:
    def tokenize_with_weights(self, text, return_word_ids=False, **options):
        return text, options.get("image")


class Model:
    """A model of ComfyUI that gives one answer after another."""

    def __init__(self, *answers, tokenizer=None):
        self.tokenizer, self.answers, self.asked = tokenizer or TakesImage(), list(answers), []

    def tokenize(self, text, **options):
        return self.tokenizer.tokenize_with_weights(text, **options)

    def generate(self, tokens, *, seed, do_sample, **_):
        self.asked.append((*tokens, seed, do_sample))
        return self.answers.pop(0)

    def decode(self, words):
        if isinstance(words, BaseException):
            raise words
        return words


def planner(model, name: str, **options) -> StatePlanner:
    return StatePlanner(model, 3, fingerprint=name, **options)


@pytest.mark.parametrize("tokenizer", [TakesImage(), TakesImages(), TakesNeither()])
def test_the_picture_goes_under_the_name_that_the_tokenizer_has(tokenizer):
    model = Model(GOOD, tokenizer=tokenizer)
    planned = planner(model, type(tokenizer).__name__).plan(PICTURE, "lift the lid")
    assert planned.states.texts == ("the lid is shut", "the lid is up", "the lid is off")
    assert planned.raw == GOOD
    text, picture, seed, drawn = model.asked[0]
    assert '"lift the lid".' in text
    assert picture.shape == (1, 8, 8, 3)
    assert (seed, drawn) == (0, False)


def test_bad_answers_are_asked_for_again_with_another_seed():
    model = Model("I cannot", "", GOOD)
    assert not planner(model, "retry").plan(PICTURE, "lift the lid").states.fallback
    assert [(seed, drawn) for *_, seed, drawn in model.asked] == [(0, False), (1, True), (2, True)]


def test_after_all_tries_the_instruction_stands_in():
    planned = planner(Model("no", "no"), "fall", retries=1).plan(PICTURE, "lift the lid")
    assert planned.states.fallback
    assert planned.states.texts == ("lift the lid",) * 3


def test_a_model_that_cannot_write_falls_back_and_says_so_and_is_not_remembered():
    broken = planner(Model(AttributeError("no generate")), "broken")
    states = broken.plan(PICTURE, "lift the lid").states
    assert states.fallback
    assert "TakesImage cannot answer" in states.reason
    mended = StatePlanner(Model(GOOD), 3, fingerprint="broken")
    assert not mended.plan(PICTURE, "lift the lid").states.fallback


def test_interrupts_go_through():
    model = Model(comfy.model_management.InterruptProcessingException())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        planner(model, "stop").plan(PICTURE, "lift the lid")


def test_the_same_question_is_asked_once_and_another_anew():
    model = Model(*[GOOD] * 5)
    ask = planner(model, "once")
    for _ in range(2):
        ask.plan(PICTURE, "lift the lid")
    assert len(model.asked) == 1
    ask.plan(PICTURE + 0.5, "lift the lid")
    ask.plan(PICTURE, "shut the lid")
    ask.plan_next(PICTURE, "lift the lid", 2, 3, before="the lid is up")
    planner(model, "once", seed=7).plan(PICTURE, "lift the lid")
    assert len(model.asked) == 5
    assert "number 2 of 3" in model.asked[3][0]


def test_an_empty_instruction_is_refused():
    with pytest.raises(InstructionError, match="instruction is empty"):
        planner(Model(GOOD), "empty").plan(PICTURE, " ")
