"""Longreel: long, multi-shot, consistent, motion-coherent video in ComfyUI.

ComfyUI calls `comfy_entrypoint` and serves `WEB_DIRECTORY`. Outside ComfyUI the same folder is the package `longreel`,
so importing this module must cost nothing and need nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """Return the extension that lists our nodes; ComfyUI calls this once, at its start."""
    from .nodes import LongreelExtension

    return LongreelExtension()
