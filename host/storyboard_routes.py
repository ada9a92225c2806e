"""What the storyboard editor asks over HTTP, so that the grammar stays in Python. Nothing is filmed or written.

    POST /longreel/storyboard/cards    {"text": ...}: its cards, with mistakes at their lines
    POST /longreel/storyboard/text     {"cards": [...]}: the text of changed cards, and its cards as above
    POST /longreel/storyboard/status   {"text": ..., "project": ..., "keep_rest": false}: what becomes of each shot

Seeds are texts here, since they are larger than a number of JavaScript holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web

from ..film.decode import DecodeError, Value, parse
from ..film.reel.choice import TAKE_DIGITS, PlannedShot, decide
from ..film.reel.fingerprint import shot_fingerprint
from ..film.reel.project import CLIPS, ProjectStore, take_stem
from ..film.reel.reel import FilmedShot, ReelError
from ..film.storyboard.cards import Card, CardEdit, read_cards, write_cards
from ..film.storyboard.shot import MAX_SECONDS, MAX_SEED, STARTS, Shot, StoryboardError
from ..film.storyboard.text import parse_storyboard
from .files.paths import project_folder

__all__ = ["cards_of", "register_storyboard_routes", "shots_status", "text_of"]

_SETTINGS = ("seconds", "seed", "start", "references", "take")
_MOST_CARDS = 10_000


def cards_of(text: str) -> dict[str, Any]:
    """The cards of a text, JSON-able."""
    return {"text": text, "cards": [_card(card) for card in read_cards(text)], "starts": STARTS}


def text_of(body: Value) -> dict[str, Any]:
    """The text of changed cards and the cards of that, JSON-able. Raises DecodeError and StoryboardError."""
    return cards_of(write_cards([_edit(card) for card in body["cards"].list(_MOST_CARDS)]))


def _card(card: Card) -> dict[str, Any]:
    return {
        "text": card.text,
        "line": card.line,
        "skipped": card.skipped,
        "readable": card.shot is not None,
        "seed": "" if card.seed is None else str(card.seed),
        "seconds": card.seconds,
        "changes": [] if card.shot is None else [prompt.at for prompt in card.shot.prompts[1:]],
        "settings": dict(card.settings),
        "words": card.words,
        "faults": [{"line": each.line, "column": each.column, "message": each.message} for each in card.faults],
    }


def _edit(value: Value) -> CardEdit:
    def given(name: str, read: Callable[[Value], Any], otherwise: Any) -> Any:
        found = value.get(name)
        return otherwise if found is None or found.raw is None else read(found)

    return CardEdit(
        text=value["text"].text(),
        seed=given("seed", _seed, None),
        skipped=given("skipped", Value.flag, False),
        settings=given("settings", _settings, {}),
        words=given("words", Value.text, None),
        split=given("split", lambda at: at.number(0, MAX_SECONDS), None),
    )


def _seed(value: Value) -> int | None:
    text = value.text()
    if text and not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= MAX_SEED):
        raise value.fault("a seed as text")
    return int(text) if text else None


def _settings(value: Value) -> dict[str, str]:
    return {name: each.text() for name, each in value.fields().items() if Value(name, each.where).choice(_SETTINGS)}


def shots_status(text: str, project: str, keep_rest: bool) -> dict[str, Any]:
    """What Film Storyboard would do with each shot, if the engine is as it was when the project was last filmed.

    JSON-able: `shots` with `action`, `reason`, `take`, `engine` and `picture`, what GET /view shows of the take; none
    where the text or the project cannot be read, with `error` if it is the project. Only headers of files are read.
    """
    try:
        shots = parse_storyboard(text).shots
        folder = project_folder(project)
        stored = ProjectStore(folder).shots() if folder.is_dir() else []
        known = {take.fingerprint: take for take in stored}
        decisions = decide(_planned(shots, stored), stored, keep_rest, lambda _: False)
    except StoryboardError:
        return {"shots": []}
    except ReelError as error:
        return {"shots": [], "error": str(error)}
    return {
        "shots": [
            {
                "action": each.action,
                "reason": each.reason,
                "take": "" if each.filmed is None else each.take[:TAKE_DIGITS],
                "engine": "" if each.filmed is None else known[each.take].settings.get("engine", ""),
                "picture": None if each.filmed is None else _picture(folder, each.take),
            }
            for each in decisions
        ]
    }


def _picture(folder: Path, take: str) -> dict[str, str] | None:
    """The newest picture of a take's video in its project; None where it was not decoded yet."""
    found = sorted((folder / CLIPS).glob(f"{take_stem(take)}-*.jpg"), key=lambda path: path.stat().st_mtime)
    if not found:
        return None
    subfolder = found[-1].parent.relative_to(folder_paths.get_output_directory()).as_posix()
    return {"filename": found[-1].name, "subfolder": subfolder, "type": "output"}


def _planned(shots: Sequence[Shot], stored: Sequence[FilmedShot]) -> list[PlannedShot]:
    """The shots with the settings with which they, or others with their references, were filmed last."""
    planned: list[PlannedShot] = []
    previous = ""
    for shot in shots:
        asked = replace(shot, take="")
        same = [take for take in stored if take.shot == asked]
        behind = [take for take in same if take.previous == previous]
        alike = [take for take in stored if take.shot.references == shot.references]
        settings = next((take.settings for take in (*behind, *same, *alike, *stored)), {})
        fingerprint = shot_fingerprint(previous, shot, settings)
        planned.append(PlannedShot(shot, previous, settings, fingerprint))
        previous = fingerprint
    return planned


def register_storyboard_routes(routes: web.RouteTableDef) -> None:
    """Add the routes to ComfyUI's server."""
    routes.post("/longreel/storyboard/cards")(_answering(lambda body: cards_of(body["text"].text())))
    routes.post("/longreel/storyboard/text")(_answering(text_of))
    routes.post("/longreel/storyboard/status")(_answering(_status))


def _status(body: Value) -> dict[str, Any]:
    return shots_status(body["text"].text(), body["project"].text(), body["keep_rest"].flag())


def _answering(answer: Callable[[Value], dict[str, Any]]) -> Callable[[web.Request], Any]:
    async def respond(request: web.Request) -> web.Response:
        try:
            return web.json_response(await asyncio.to_thread(answer, parse(await request.read())))
        except DecodeError as error:
            return web.json_response({"error": f"This request cannot be read: {error}."}, status=400)
        except StoryboardError as error:
            return web.json_response({"error": error.message}, status=400)

    return respond
