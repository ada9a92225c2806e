"""Values of inputs that ComfyUI's own check lets through to a node, from who calls the API.

ComfyUI compares a number with its input's bounds, and NaN is neither below nor above any. What a node's own
validate_inputs names it gets as it came, of whatever type.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

from comfy_api.latest import io

from ..film.decode import quoted

__all__ = ["checked"]

_TYPES: dict[type[io.Input], tuple[tuple[type, ...], str]] = {
    io.String.Input: ((str,), "text"),
    io.Combo.Input: ((str,), "one of its choices"),
    io.Int.Input: ((int,), "a whole number"),
    io.Float.Input: ((int, float), "a number"),
}


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node; it refuses NaN before it runs, and its validate_inputs gets values of the types that it expects."""
    inputs = node.define_schema().inputs
    if any(isinstance(each, io.Float.Input) for given in inputs for each in given.get_all()):
        node.check_lazy_status = classmethod(_refuse_nan)
    own = node.__dict__.get("validate_inputs")
    if own is not None:
        types = {each.id: _TYPES[type(each)] for each in inputs if type(each) in _TYPES}
        node.validate_inputs = classmethod(_typed(own.__func__, types))
    return node


def _refuse_nan(cls: type[io.ComfyNode], /, **values: Any) -> list[str]:
    """ComfyUI calls check_lazy_status with all inputs, those inside dynamic ones too, before it calls execute.

    validate_inputs would come earlier, but takes the place of ComfyUI's own bounds for what it names.
    """
    for name, value in _numbers(values, ""):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a number, not {value}.")
    return []


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


def _typed(own: Callable[..., bool | str], types: dict[str, tuple[tuple[type, ...], str]]) -> Callable[..., bool | str]:
    def validate_inputs(cls: type[io.ComfyNode], /, **values: Any) -> bool | str:
        for name, value in values.items():
            expected, words = types.get(name, ((object,), ""))
            if value is not None and not isinstance(value, expected):  # None: connected, not known yet
                return f"{name} must be {words}, not {quoted(value)}."
        return own(cls, **values)

    validate_inputs.__signature__ = inspect.signature(own)  # type: ignore[attr-defined] # whose names ComfyUI reads
    return validate_inputs
