"""What programs ask over HTTP, read only: projects and their takes, and what a storyboard's text stands for.

    GET  /longreel/projects            every project, with its number of takes and its size
    GET  /longreel/projects/<name>     its takes, the newest first
    POST /longreel/storyboard          {"text": ...}: the shots of a storyboard, or its mistakes, each at its line

What the storyboard editor asks is storyboard_routes.py.

ComfyUI serves them with and without /api in front. Filming goes through ComfyUI's own POST /prompt.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web

from ..film.reel.choice import TAKE_DIGITS
from ..film.reel.project import ProjectStore
from ..film.reel.reel import FilmedShot, ReelError
from ..film.storyboard.json_form import shot_to_dict
from ..film.storyboard.text import format_storyboard, parse_storyboard, storyboard_faults
from .files.paths import project_folder
from .review_routes import register_review_routes
from .storyboard_routes import register_storyboard_routes

__all__ = ["project_status", "register_routes", "storyboard_status"]


def project_status(name: str) -> dict[str, Any] | None:
    """A project and its takes, JSON-able; None where there is none of this name."""
    try:
        folder = project_folder(name)
    except ReelError:
        return None
    if not folder.is_dir():
        return None
    takes = ProjectStore(folder).shots()
    return {
        "project": name,
        "folder": str(folder),
        "bytes": sum(take.file.path.stat().st_size for take in takes),
        "takes": [_take(take) for take in takes],
    }


def _take(take: FilmedShot) -> dict[str, Any]:
    return {
        "take": take.fingerprint[:TAKE_DIGITS],
        "after": take.previous[:TAKE_DIGITS],
        "shot": shot_to_dict(take.shot),
        "engine": take.settings.get("engine", ""),
        "frames": take.frames,
        "file": take.file.path.name,
        "bytes": take.file.path.stat().st_size,
        "filmed": take.file.path.stat().st_mtime,
    }


def _projects() -> list[dict[str, Any]]:
    root = Path(folder_paths.get_output_directory()) / "longreel"
    found = []
    for folder in sorted(root.iterdir() if root.is_dir() else ()):
        files = list(folder.glob("shot-*.safetensors")) if folder.is_dir() else []
        if files:
            size = sum(path.stat().st_size for path in files)
            found.append({"project": folder.name, "takes": len(files), "bytes": size})
    return found


def storyboard_status(text: str) -> dict[str, Any]:
    """The shots that a text stands for and its canonical form, or its mistakes, JSON-able."""
    faults = storyboard_faults(text)
    if faults:
        return {"faults": [{"line": each.line, "column": each.column, "message": each.message} for each in faults]}
    board = parse_storyboard(text)
    shots = [shot_to_dict(shot) for shot in board.shots]
    return {"faults": [], "shots": shots, "seconds": board.seconds, "text": format_storyboard(board)}


async def _list(_: web.Request) -> web.Response:
    return web.json_response({"projects": await asyncio.to_thread(_projects)})


async def _show(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    status = await asyncio.to_thread(project_status, name)
    if status is None:
        return web.json_response({"error": f"There is no project {name!r} in output/longreel."}, status=404)
    return web.json_response(status)


async def _storyboard(request: web.Request) -> web.Response:
    try:
        text = (await request.json())["text"]
    except (ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        return web.json_response({"error": 'Send {"text": "..."} as JSON.'}, status=400)
    return web.json_response(storyboard_status(text))


def register_routes() -> None:
    """Add the routes to ComfyUI's server; nothing where there is none, as on the command line."""
    from server import PromptServer

    instance = getattr(PromptServer, "instance", None)
    if instance is None:
        return
    instance.routes.get("/longreel/projects")(_list)
    instance.routes.get("/longreel/projects/{name}")(_show)
    instance.routes.post("/longreel/storyboard")(_storyboard)
    register_storyboard_routes(instance.routes)
    register_review_routes(instance.routes)
