"""Instruction-guided prediction (AID, arXiv 2406.06465): state planning, DQFormer, adapters, schedules. Pure."""

from .planner import (
    DEFAULT_STATES,
    MAX_STATES,
    Detail,
    InstructionError,
    State,
    States,
    fallback_states,
    next_states_prompt,
    parse_states,
    states_prompt,
)
from .schedule import chunk_prompt, chunk_states, spread_chunks, state_at

__all__ = [
    "DEFAULT_STATES",
    "MAX_STATES",
    "Detail",
    "InstructionError",
    "State",
    "States",
    "chunk_prompt",
    "chunk_states",
    "fallback_states",
    "next_states_prompt",
    "parse_states",
    "spread_chunks",
    "state_at",
    "states_prompt",
]
