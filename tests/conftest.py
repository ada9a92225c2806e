"""Fixtures for every room's tests."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.options
import hypothesis
import pytest

from . import device as on
from .server.harness import Server, make_server

if TYPE_CHECKING:
    import torch

DEVICE = on.wanted(sys.argv[1:], os.environ)

# ComfyUI reads its command line when it is first imported.
_argv, sys.argv = sys.argv, [sys.argv[0], *on.comfyui_flags(DEVICE)]
comfy.options.enable_args_parsing()
import comfy.cli_args  # noqa: E402

sys.argv = _argv


# How long an example takes depends on what else the machine does: no verdict hangs on it. The same code gets the same
# verdict; --hypothesis-profile=random looks for what these examples miss.
hypothesis.settings.register_profile("longreel", deadline=None, derandomize=True)
hypothesis.settings.register_profile("random", deadline=None)
hypothesis.settings.load_profile("longreel")

# A cancelled CI job sends SIGTERM: end as Ctrl-C does, so that fixtures stop their servers.
signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options to pytest's."""
    parser.addoption("--device", choices=on.DEVICES, default=DEVICE, help="where ComfyUI computes (tests/device.py)")
    parser.addoption(
        "--update-snapshots",
        action="store_true",
        help="rewrite tests/snapshots from what is there now, where saved workflows go on working",
    )
    parser.addoption(
        "--write-quality-table", action="store_true", help="with -m quality: write what was measured as docs/quality.md"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a device that is not there, before anything is collected."""
    missing = on.absent(config.getoption("--device"))
    if missing is not None:
        raise pytest.UsageError(missing)
    on.make_exact(DEVICE)


def pytest_report_header() -> str | None:
    """On a GPU, say on which and what that means."""
    if DEVICE == "cpu":
        return None
    return f"device: {DEVICE}; in this process fp32 and deterministic algorithms, in servers ComfyUI's own choice"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave long measurements and campaigns out unless they are asked for by their marker; say what is for a CPU."""
    for item in items if DEVICE != "cpu" else ():
        only = item.get_closest_marker("cpu_only")
        if only is not None:
            item.add_marker(pytest.mark.skip(reason=f"for a CPU only: {only.args[0]}"))
    for marker in ("quality", "campaign"):
        if marker not in config.option.markexpr:
            long = [item for item in items if item.get_closest_marker(marker)]
            items[:] = [item for item in items if item not in long]
            config.hook.pytest_deselected(items=long)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where pytest-xdist runs the suite in several processes, tests that share a server stay in one: they leave files
    for each other. Its marker for groups does nothing with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByRoomOrFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            room = file.rsplit("/", 1)[0]
            return room if room.endswith(("tests/browser", "tests/server")) else file

    return ByRoomOrFile(config, log)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where a test that computes by itself should do so: the device that `--device` names."""
    import torch

    return torch.device(DEVICE)


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


@pytest.fixture
def tidy_output(server: Server) -> Iterator[None]:
    """What a test writes into the output folder of the shared server is gone after it.

    Folders stay: ComfyUI no longer shows a node whose list of files is of a folder that has gone.
    """
    output = server.base / "output"
    before = set(output.rglob("*"))
    yield
    for path in set(output.rglob("*")) - before:
        if not path.is_dir():
            path.unlink(missing_ok=True)
