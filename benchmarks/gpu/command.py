"""One command of the motion trainer, without the other recipes' imports: WEIGHTS COMMAND OPTIONS..."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from longreel.training.motion.command import COMMANDS

if __name__ == "__main__":
    command, parser = COMMANDS[sys.argv[2]], argparse.ArgumentParser(prog=sys.argv[2])
    command.add_arguments(parser)
    command.run(parser.parse_args(sys.argv[3:]), Path(sys.argv[1]))
