"""Numbers that are none. ComfyUI compares a number with its input's bounds, and NaN is neither below nor above any: it
comes through from who calls the API, and would be filmed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from comfy_api.latest import io

__all__ = ["with_finite_numbers"]


def with_finite_numbers(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node; where it takes numbers with a fraction, it refuses NaN before it runs.

    check_lazy_status is what ComfyUI calls with all of a node's inputs, those inside dynamic ones too, before it calls
    execute. validate_inputs would be called earlier, but takes the place of ComfyUI's own bounds for what it names.
    """

    def check_lazy_status(cls: type[io.ComfyNode], **values: Any) -> list[str]:
        for name, value in _numbers(values, ""):
            if not math.isfinite(value):
                raise ValueError(f"{name} must be a number, not {value}.")
        return []

    if any(_takes_fractions(each) for each in node.define_schema().inputs):
        setattr(node, "check_lazy_status", classmethod(check_lazy_status))  # noqa: B010 - no assignment to a method
    return node


def _takes_fractions(given: io.Input) -> bool:
    return any(isinstance(each, io.Float.Input) for each in given.get_all())


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """The numbers among values, with the names of their inputs."""
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _numbers(each, f"{name}.{key}" if name else key)
    elif isinstance(value, tuple):  # ComfyUI gives what is inside a dynamic input with its full name
        for each in value:
            yield from _numbers(each, name)
