"""Stop signals during a run: never in the middle of an update or of a file."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stopping:
    """Turns SIGINT and SIGTERM into KeyboardInterrupt, but not inside ``whole``.

    Python raises between any two instructions, so a key pressed while weights change would leave half of them changed.
    SIGTERM, because that is how `accelerate launch` and schedulers end their processes. Outside the main thread (a
    node) there are no signals and this does nothing.
    """

    def __init__(self) -> None:
        self._busy = self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """What happens inside is finished; a stop that was asked for comes after."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._busy:
            self._asked = True
        else:
            raise KeyboardInterrupt
