"""The real ComfyUI server for tests: our pack in a base directory of its own, on a free port, on the tests' device.

    def test_something(server: Server):
        outcome = server.queue({"1": {"class_type": "LongreelStoryboard", "inputs": {...}}, ...})
        assert outcome.ran == [...]

`Server` and `Outcome` are those of `scripts/comfyui_server.py`, which films the quick start with them.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from ..device import VARIABLE, server_flags

REPOSITORY = Path(__file__).resolve().parents[2]

FLAGS = ("--cache-classic", "--disable-api-nodes", "--database-url", "sqlite:///:memory:")
"""One cache mode on every machine (the default one evicts by free RAM), no talk to the outside, no database file."""


def load_script(name: str) -> ModuleType:
    """Import `scripts/<name>.py` by its path.

    The folder itself must not be on the path: it holds a `comfy.py`, which would hide ComfyUI's package.
    """
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


_server = load_script("comfyui_server")
_setup = load_script("comfyui_setup")
Event, Server, Outcome = _server.Event, _server.Server, _server.Outcome
PromptRejected, ServerError = _server.PromptRejected, _server.ServerError


def comfyui_root() -> Path:
    """The folder with ComfyUI's `main.py`, as the environment that runs the tests has it."""
    spec = importlib.util.find_spec("comfy")
    assert spec is not None, "the tests need ComfyUI: run scripts/comfy.py test"
    return Path(next(iter(spec.submodule_search_locations or ()))).parent


def make_server(base: Path, *flags: str) -> Server:
    """A server, not yet started, whose base directory `base` holds nothing but a link to the pack."""
    for folder in ("custom_nodes", "input", "output", "models", "user", "temp"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    _setup.link(REPOSITORY, base / "custom_nodes" / "longreel")
    flags = (*server_flags(os.environ.get(VARIABLE, "cpu")), *FLAGS, *flags)
    return Server(Path(sys.executable), comfyui_root(), base, flags, log=base / "server.log")
