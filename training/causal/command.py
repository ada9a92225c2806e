"""Three commands: `causal` tunes a causal model on its own long films, `memory-lora` trains the miniature's memory
adapter, `memory-judge` says what a memory is worth.
"""

from __future__ import annotations

from ..core.command_line import Command
from .evaluate import add_evaluation_arguments, run_evaluation
from .long_command import add_tuning_arguments, run_tuning
from .train import add_lora_arguments, run_lora

COMMANDS = {
    "causal": Command(
        "a causal model films on from its own frames and learns to hold for minutes",
        add_tuning_arguments,
        run_tuning,
        shared=True,
    ),
    "memory-lora": Command("the miniature learns to use its memory (MemFlow)", add_lora_arguments, run_lora),
    "memory-judge": Command("what window, sink and bank are worth", add_evaluation_arguments, run_evaluation),
}
