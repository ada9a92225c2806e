"""A film for other programs: its shots as an edit decision list (CMX 3600), its prompts as subtitles (SubRip)."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from .choice import TAKE_DIGITS, take_of
from .reel import FilmedShot, Reel

__all__ = ["edit_list", "subtitles"]


def edit_list(reel: Reel, clip: str) -> str:
    """The shots of a reel as an EDL: one event each, all of them cut out of the film's own video file.

    clip: the name of that file. Time codes count frames at the nearest whole rate without dropping any, as editors do
    for 23.976. Lines end with LF.
    """
    rate = max(1, round(reel.layout.fps))
    lines = [f"TITLE: {clip}", "FCM: NON-DROP FRAME", ""]
    for number, (shot, start) in enumerate(_starts(reel), start=1):
        begin, end = _time_code(start, rate), _time_code(start + shot.frames, rate)
        opening = shot.shot.prompts[0].text.split("\n")[0]
        take = take_of(shot)[:TAKE_DIGITS]
        lines += [
            f"{number:03}  AX       V     C        {begin} {end} {begin} {end}",
            f"* FROM CLIP NAME: {clip}",
            f"* COMMENT: SHOT {number}, TAKE {take}, SEED {shot.shot.seed}: {opening}",
            "",
        ]
    return "\n".join(lines)


def subtitles(reel: Reel) -> str:
    """The prompts of a film, each from where it holds to the next, as SubRip (.srt). Lines end with LF."""
    fps = Fraction(repr(float(reel.layout.fps)))
    blocks: list[str] = []
    for shot, start in _starts(reel):
        begin, end = start / fps, (start + shot.frames) / fps
        times = [min(begin + Fraction(repr(prompt.at)), end) for prompt in shot.shot.prompts] + [end]
        for prompt, first, last in zip(shot.shot.prompts, times, times[1:]):
            if first < last:  # else the shot was over before it
                # A blank line would end the entry.
                text = "\n".join(line for line in prompt.text.split("\n") if line.strip())
                blocks.append(f"{len(blocks) + 1}\n{_clock(first)} --> {_clock(last)}\n{text}\n")
    return "\n".join(blocks)


def _starts(reel: Reel) -> Iterator[tuple[FilmedShot, int]]:
    """Each shot and the film's frame at which it begins."""
    start = 0
    for shot in reel.shots:
        yield shot, start
        start += shot.frames


def _time_code(frame: int, rate: int) -> str:
    seconds, frames = divmod(frame, rate)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}:{frames:02}"


def _clock(seconds: Fraction) -> str:
    thousandths = round(seconds * 1000)
    whole, rest = divmod(thousandths, 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02},{rest:03}"
