"""A user's change to what later shots are conditioned on, between two shots: pins, bans, own pictures."""

from __future__ import annotations

import hashlib
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .fingerprint import canonical_json
from .stored_tensors import StoredTensors
from .tensor_file import FileHeader, read_header, write_tensor_file

__all__ = ["Edit", "edit_from", "edit_section"]


@dataclass(frozen=True, eq=False)
class Edit:
    """One change. It stays where it was made when the reel grows, and goes when the reel is cut before it.

    after: shots that were filmed before it. meta: JSON-able, by group, as a FilmedShot's; it must name its tensors by
    their content, as it alone decides the fingerprint of what follows. file: the tensors, by group.
    """

    after: int
    meta: Mapping[str, Any]
    file: StoredTensors

    @classmethod
    def store(
        cls,
        after: int,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        meta: Mapping[str, Any],
        folder: Path | None = None,
    ) -> Edit:
        """Puts an edit on disk, in a temporary file that lives as long as it does. folder: see FilmedShot.store."""
        named = {f"{group}.{name}": tensor for group, members in tensors.items() for name, tensor in members.items()}
        section = {"uid": uuid.uuid4().hex, "prefix": "", "after": after, "meta": dict(meta)}
        path = (folder or Path(tempfile.gettempdir())) / f"longreel-{section['uid']}.safetensors"
        write_tensor_file(path, {"kind": "edit", "shots": [], "edits": [section]}, named, durable=False)
        header = read_header(path)
        return edit_from(header.info["edits"][0], header, owned=True)

    @property
    def digest(self) -> str:
        """SHA-256 of what it changes."""
        return hashlib.sha256(canonical_json(self.meta).encode("ascii")).hexdigest()


def edit_section(edit: Edit, prefix: str) -> dict[str, Any]:
    """How a file describes an edit whose tensors lie under `prefix`."""
    return {"uid": edit.file.uid, "prefix": prefix, "after": edit.after, "meta": dict(edit.meta)}


def edit_from(section: Mapping[str, Any], header: FileHeader, owned: bool = False) -> Edit:
    """Inverse of edit_section. owned: see StoredTensors."""
    return Edit(section["after"], section["meta"], StoredTensors(header, section["uid"], owned))
