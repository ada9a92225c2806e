"""ComfyUI reads its command line when it is first imported; tests of this room run it on the CPU."""

from __future__ import annotations

import sys

import comfy.options

_argv = sys.argv
sys.argv = [_argv[0], "--cpu"]
comfy.options.enable_args_parsing()
import comfy.cli_args  # noqa: E402  (parses now, with our argument)

sys.argv = _argv
