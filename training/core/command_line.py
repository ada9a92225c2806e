"""What every command has in common: how it is listed, how ComfyUI starts, how errors and Ctrl-C end it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .loop import DivergedError
from .lora import LoraError
from .processes import ProcessError, processes


class Command(NamedTuple):
    """A recipe on the command line. run: with the options and the folder of the miniature's files. shared: many
    processes can work on it together.
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Path], None]
    shared: bool = False


def start_comfyui() -> None:
    """ComfyUI decides on devices when first imported and reads its options from the command line."""
    import comfy.options

    own, sys.argv = sys.argv, [sys.argv[0], *([] if torch.cuda.is_available() else ["--cpu"])]
    comfy.options.enable_args_parsing()
    import comfy.cli_args

    sys.argv = own


@contextmanager
def command_line(*errors: type[Exception]) -> Iterator[None]:
    """Inside, a command works: ComfyUI is started; errors that a user can correct (`errors` and those of any run) end
    it with one sentence, without a traceback, and so does a stop by hand.
    """
    own: tuple[type[Exception], ...] = (LoraError, ProcessError, DivergedError, *errors)
    try:
        processes()  # ComfyUI takes the GPU that is this process's own
        start_comfyui()
        yield
    except own as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt as stop:
        raise SystemExit(130) from stop


def add_model_arguments(parser: argparse.ArgumentParser, help: str) -> None:
    """`--model` and `--base-dtype`. help: of the model."""
    parser.add_argument("--model", type=Path, help=f"{help}; default the miniature's")
    parser.add_argument("--base-dtype", choices=("bf16", "float32", "fp8"), help="default bf16, on a CPU float32")


def load_base(path: Path, dtype: str | None) -> Any:
    """The MODEL to train, by core's loader, in `dtype` or the device's own."""
    import comfy.model_management
    import comfy.sd

    on_cpu = comfy.model_management.get_torch_device().type == "cpu"
    dtypes = {"bf16": torch.bfloat16, "float32": torch.float32, "fp8": torch.float8_e4m3fn}
    options = {"dtype": dtypes[dtype or ("float32" if on_cpu else "bf16")]}
    return comfy.sd.load_diffusion_model(str(path), model_options=options, disable_dynamic=True)
