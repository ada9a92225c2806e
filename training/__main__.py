"""`python -m longreel.training RECIPE`: the trainers and their evaluations; `--help` lists them.

`accelerate launch -m longreel.training cast-lora ...` shares a run between GPUs and machines.
"""

from __future__ import annotations

import argparse
import pkgutil
import signal
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from ..film.console import print_anything
from . import __path__ as _ROOMS
from .core.command_line import Command
from .core.processes import processes

WEIGHTS = Path(__file__).resolve().parent.parent / "miniature" / "weights"


def find_commands(rooms: Iterable[str] = _ROOMS) -> dict[str, Command]:
    """The COMMANDS of every room (a package under `rooms`) that has a module `command`, room by room."""
    found: dict[str, Command] = {}
    for room in sorted(pkgutil.iter_modules(rooms), key=lambda one: one.name):
        name = f"{__package__}.{room.name}"
        if room.ispkg and find_spec(f"{name}.command"):
            found |= import_module(f"{name}.command").COMMANDS
    return found


COMMANDS = find_commands()


def main() -> None:
    """Read the command line and run the recipe it names."""
    print_anything()
    # Batch systems announce the end of a job with SIGTERM: it saves and stops a run as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(
        prog="python -m longreel.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    recipes = parser.add_subparsers(dest="recipe", required=True)
    for name, command in COMMANDS.items():
        own = recipes.add_parser(name, help=command.help)
        command.add_arguments(own)
        own.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all cores")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    command = COMMANDS[chosen.recipe]
    if not command.shared and processes().num_processes > 1:
        raise SystemExit(f"{chosen.recipe} is the work of one process: start it without a launcher.")
    command.run(chosen, WEIGHTS)


if __name__ == "__main__":
    main()
