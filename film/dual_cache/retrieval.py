"""Retrieval of keyframes for a prompt: the K of largest text-image cosine, with marks, a floor and a quota."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from .keyframe import Keyframe
from .profile import CacheError

__all__ = ["Ranked", "Retrieval", "RetrievalPolicy", "Verdict", "retrieve", "split_sentences"]

Verdict = Literal["pinned", "chosen", "outranked", "quota", "below floor", "banned"]
TAKEN: tuple[Verdict, ...] = ("pinned", "chosen")

# Scores closer than this are ties: they differ by rounding, which depends on the machine.
_DECIMALS = 6


@dataclass(frozen=True)
class RetrievalPolicy:
    """How keyframes are chosen.

    count: at most this many (the paper's K is 3). per_character: at most this many that show the same character, so
    that one cannot take all places; 0 for no limit. Pins count towards it but are retrieved regardless. min_score:
    cosine (-1..1) below which a keyframe that is not pinned stays out; None for no floor. sentences: a prompt's score
    is the "mean" or the "max" over its sentences. Raises CacheError.
    """

    count: int = 3
    per_character: int = 0
    min_score: float | None = None
    sentences: Literal["mean", "max"] = "mean"

    def __post_init__(self) -> None:
        if min(self.count, self.per_character) < 0:
            raise CacheError("The number of keyframes and the quota per character must be 0 or more.")
        if self.sentences not in ("mean", "max"):
            raise CacheError(f"Unknown sentence rule {self.sentences!r}: choose mean or max.")


@dataclass(frozen=True)
class Ranked:
    """One keyframe of the bank, its score (-1..1) for the prompt, and whether it was retrieved or why not."""

    keyframe: Keyframe
    score: float
    verdict: Verdict


@dataclass(frozen=True)
class Retrieval:
    """The whole bank, ranked: retrieved keyframes first, best first, then the rest by score, the banned last."""

    ranking: tuple[Ranked, ...]

    @property
    def keyframes(self) -> tuple[Keyframe, ...]:
        """The retrieved keyframes, best first."""
        return tuple(ranked.keyframe for ranked in self.ranking if ranked.verdict in TAKEN)


def retrieve(
    bank: Iterable[Keyframe],
    text: torch.Tensor,
    policy: RetrievalPolicy = RetrievalPolicy(),
) -> Retrieval:
    """Ranks a bank for a prompt. Pins come first, by score among themselves; the order of the bank does not matter.

    text: CLIP text embeddings [sentences, d], or [d] for one, from the same CLIP as the keyframes'. Ties go to the
    earlier shot, then the earlier frame, then the uid. Raises CacheError if d differs from a keyframe's.
    """
    scored = [(keyframe, _score(keyframe, text, policy)) for keyframe in bank]
    scored.sort(key=lambda item: (-item[1], item[0].shot, item[0].frame, item[0].uid))
    # Stable: pins, then the others, then the banned, each in the order above.
    scored.sort(key=lambda item: 2 if item[0].banned else 0 if item[0].pinned else 1)
    seen: Counter[str] = Counter()
    taken: list[Ranked] = []
    left: list[Ranked] = []
    for keyframe, score in scored:
        verdict = _verdict(keyframe, score, len(taken), seen, policy)
        if verdict in TAKEN:
            seen.update(set(keyframe.characters))
            taken.append(Ranked(keyframe, score, verdict))
        else:
            left.append(Ranked(keyframe, score, verdict))
    return Retrieval((*taken, *left))


def split_sentences(prompt: str) -> tuple[str, ...]:
    """The sentences of a prompt, to be embedded one by one: CLIP reads 77 tokens and cuts off the rest.

    They end with . ! ? ; (also the full-width ones) or a line. Text without any is one sentence.
    """
    parts = re.split("(?<=[.!?;])\\s+|(?<=[\u3002\uff01\uff1f\uff1b])|\n", prompt)
    return tuple(stripped for part in parts if (stripped := part.strip()))


def _score(keyframe: Keyframe, text: torch.Tensor, policy: RetrievalPolicy) -> float:
    rows = text.detach().to("cpu", torch.float64).reshape(-1, text.shape[-1])
    if rows.shape[1] != keyframe.embedding.shape[0]:
        raise CacheError(
            f"The prompt's embedding has {rows.shape[1]} numbers and a keyframe's {keyframe.embedding.shape[0]}: "
            "use the CLIP model the keyframes were made with."
        )
    cosines = F.cosine_similarity(rows, keyframe.embedding.double()[None], dim=1)
    return round(float(cosines.max() if policy.sentences == "max" else cosines.mean()), _DECIMALS)


def _verdict(keyframe: Keyframe, score: float, taken: int, seen: Counter[str], policy: RetrievalPolicy) -> Verdict:
    if keyframe.banned:
        return "banned"
    if taken >= policy.count:
        return "outranked"
    if keyframe.pinned:
        return "pinned"
    if policy.min_score is not None and score < policy.min_score:
        return "below floor"
    if policy.per_character and any(seen[name] >= policy.per_character for name in keyframe.characters):
        return "quota"
    return "chosen"
