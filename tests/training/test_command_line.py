import os
import signal
import sys

import pytest
from longreel.training import __main__ as command_line


def test_a_job_that_is_told_to_end_stops_as_by_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(chosen: object, weights: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(command_line.COMMANDS, "memory-judge", command_line.COMMANDS["memory-judge"]._replace(run=run))
    monkeypatch.setattr(sys, "argv", ["training", "memory-judge"])
    try:
        with pytest.raises(KeyboardInterrupt):
            command_line.main()
    finally:
        signal.signal(signal.SIGTERM, before)
