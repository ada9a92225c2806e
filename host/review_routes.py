"""The review of a project over HTTP, for the node's buttons and for programs.

    GET  /longreel/projects/<name>/review    what waits, what was approved
    POST /longreel/projects/<name>/review    {"take": ..., "decision": "approve" | "retry" | "stop", "seed": ...}

ComfyUI serves them with and without /api in front, and refuses other sites' pages. A decision films nothing: queue the
prompt again.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from aiohttp import web

from ..film.decode import DecodeError, parse
from ..film.reel.choice import TAKE_DIGITS
from ..film.reel.project import ProjectStore
from ..film.reel.reel import ReelError
from ..film.reel.review import Review, ReviewDecision, ReviewFile
from .files.paths import project_folder

__all__ = ["decide", "register_review_routes", "review_status"]

_PATH = "/longreel/projects/{name}/review"
_MAX_BYTES = 4096


def review_status(name: str) -> dict[str, Any]:
    """The review of a project, JSON-able; an empty one where there is no project of this name. Raises ReelError."""
    folder = project_folder(name)
    return _status(name, ReviewFile(folder).load(), ProjectStore(folder) if folder.is_dir() else None)


def decide(name: str, decision: ReviewDecision) -> dict[str, Any]:
    """Applies a decision, and returns the status after it.

    Raises ReelError for a take that does not wait, or that is approved before it is filmed.
    """
    folder = project_folder(name)
    if not folder.is_dir():
        raise ReelError(f"There is no project {name!r} in output/longreel: film it first.")
    store = ProjectStore(folder)

    def change(review: Review) -> Review:
        decided = review.decided(decision)
        assert review.waiting is not None
        if decision.decision != "retry" and not store.has(review.waiting.take):
            raise ReelError(f"Shot {review.waiting.shot} is not filmed yet: wait until it can be looked at.")
        return decided

    return _status(name, ReviewFile(folder).update(change), store)


def _status(name: str, review: Review, store: ProjectStore | None) -> dict[str, Any]:
    waiting = review.waiting
    told = None
    if waiting is not None:
        filmed = store is not None and store.has(waiting.take)
        told = {**asdict(waiting), "take": waiting.take[:TAKE_DIGITS], "filmed": filmed}
        del told["asked"]
    return {
        "project": name,
        "waiting": told,
        "approved": sorted(take[:TAKE_DIGITS] for take in review.approved),
        "decisions": review.made,
    }


async def _show(request: web.Request) -> web.Response:
    try:
        return web.json_response(await asyncio.to_thread(review_status, request.match_info["name"]))
    except ReelError as error:
        return web.json_response({"error": str(error)}, status=409)


async def _decide(request: web.Request) -> web.Response:
    try:
        decision = ReviewDecision.from_json(parse(await request.content.read(_MAX_BYTES + 1), _MAX_BYTES))
    except DecodeError as error:
        return web.json_response({"error": f"The decision cannot be read: {error}."}, status=400)
    try:
        return web.json_response(await asyncio.to_thread(decide, request.match_info["name"], decision))
    except ReelError as error:
        return web.json_response({"error": str(error)}, status=409)


def register_review_routes(routes: web.RouteTableDef) -> None:
    """Add the routes to ComfyUI's server."""
    routes.get(_PATH)(_show)
    routes.post(_PATH)(_decide)
