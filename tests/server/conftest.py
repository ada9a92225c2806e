"""Fixtures of the server tests."""

from __future__ import annotations

import pytest

from .. import tiny_models
from .harness import Server


@pytest.fixture(scope="session")
def studio(server: Server) -> Server:
    """The shared server with tiny models in its folders."""
    tiny_models.write(server.base / "models")
    return server
