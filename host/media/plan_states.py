"""States of an instruction from a vision-language model, with retries, a fallback, and a cache of questions."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property

from comfy.sd import CLIP
from torch import Tensor

from ...film.instruction import Detail, States, fallback_states, next_states_prompt, parse_states, states_prompt
from ..model_fingerprint import fingerprint_clip, fingerprint_image
from .ask import ask_about_picture

__all__ = ["Planned", "StatePlanner"]

_MOST = 512
_ANSWERS: OrderedDict[str, Planned] = OrderedDict()


@dataclass(frozen=True)
class Planned:
    """States, and the model's last answer as it was."""

    states: States
    raw: str


@dataclass(frozen=True, eq=False)
class StatePlanner:
    """Asks a vision-language model.

    clip: the model as ComfyUI's CLIP, from Load CLIP. count: of states. detail: what is asked, see states_prompt.
    retries: further tries after an answer that cannot be used, each with another seed. seed: 0 takes the likeliest
    words first.
    """

    clip: CLIP
    count: int
    detail: Detail = "plain"
    retries: int = 2
    seed: int = 0
    fingerprint: str = field(default="", compare=False)

    @cached_property
    def identity(self) -> str:
        """Everything that decides an answer but the picture and the question: for projects and caches."""
        made = self.fingerprint or fingerprint_clip(self.clip)
        return f"{made}:{self.count}:{self.detail}:{self.retries}:{self.seed}"

    def plan(self, picture: Tensor, instruction: str) -> Planned:
        """States that begin with a picture [H, W, 3] in 0..1.

        Falls back to the instruction, and says why, if no answer can be used or the model cannot write. The same
        question about the same picture is asked once. Raises InstructionError for an empty instruction, and ComfyUI's
        interrupt.
        """
        return self._ask(picture, states_prompt(instruction, self.count, self.detail), instruction)

    def plan_next(self, picture: Tensor, instruction: str, part: int, parts: int, before: str = "") -> Planned:
        """States of part `part` (from 1) of `parts`, beginning with the last frame filmed; else as `plan`.

        before: the state that the part before should have ended in.
        """
        question = next_states_prompt(instruction, self.count, part, parts, before, self.detail)
        return self._ask(picture, question, instruction)

    def _ask(self, picture: Tensor, question: str, instruction: str) -> Planned:
        key = hashlib.sha256(f"{self.identity}|{fingerprint_image(picture)}|{question}".encode()).hexdigest()
        if key in _ANSWERS:
            _ANSWERS.move_to_end(key)
            return _ANSWERS[key]
        answer, states = "", fallback_states(instruction, self.count, "Nothing was asked.")
        for number in range(self.retries + 1):
            try:
                answer = ask_about_picture(self.clip, question, picture, self.seed + number)
            except Exception as error:  # whatever a text encoder raises that is none to write with
                reason = f"{type(self.clip.tokenizer).__name__} cannot answer ({type(error).__name__}: {error})."
                logging.warning("Longreel, states: %s", reason)
                return Planned(fallback_states(instruction, self.count, reason), "")
            states = parse_states(answer, instruction, self.count)
            if not states.fallback:
                break
            logging.info("Longreel, states: %s", states.reason)
        if states.fallback:
            logging.warning("Longreel: the instruction stands in for all states. %s", states.reason)
        planned = Planned(states, answer)
        _ANSWERS[key] = planned
        if len(_ANSWERS) > _MOST:
            _ANSWERS.popitem(last=False)
        return planned
