"""Fixtures for every room's tests."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import comfy.options
import hypothesis
import pytest

from .server.harness import Server, make_server

# ComfyUI reads its command line when it is first imported. In the tests' own process it runs on the CPU everywhere.
_argv, sys.argv = sys.argv, [sys.argv[0], "--cpu"]
comfy.options.enable_args_parsing()
import comfy.cli_args  # noqa: E402

sys.argv = _argv


# How long an example takes depends on what else the machine does: no verdict hangs on it.
hypothesis.settings.register_profile("longreel", deadline=None)
hypothesis.settings.load_profile("longreel")

# A cancelled CI job sends SIGTERM: end as Ctrl-C does, so that fixtures stop their servers.
signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options to pytest's."""
    parser.addoption(
        "--update-snapshots",
        action="store_true",
        help="rewrite tests/snapshots from what is there now, where saved workflows go on working",
    )
    parser.addoption(
        "--write-quality-table", action="store_true", help="with -m quality: write what was measured as docs/quality.md"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave long measurements and campaigns out unless they are asked for by their marker."""
    for marker in ("quality", "campaign"):
        if marker not in config.option.markexpr:
            long = [item for item in items if item.get_closest_marker(marker)]
            items[:] = [item for item in items if item not in long]
            config.hook.pytest_deselected(items=long)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The running server that a session's tests share. Leave it idle; give your prompts values of their own."""
    starting = make_server(tmp_path_factory.mktemp("server"))
    shutil.copyfile(Path(__file__).parent / "server" / "stand_ins.py", starting.base / "custom_nodes" / "stand_ins.py")
    with starting as running:
        yield running


@pytest.fixture(scope="session")
def studio(server: Server) -> Server:
    """The shared server with tiny models in its folders."""
    from . import tiny_models  # torch and ComfyUI's models, which most tests do without

    tiny_models.write(server.base / "models")
    return server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server for one test, not yet started, which may be killed, restarted or broken."""
    server = make_server(tmp_path / "server")
    yield server
    server.stop()
