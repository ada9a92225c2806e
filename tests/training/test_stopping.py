"""A stop signal never leaves half an update."""

from __future__ import annotations

import signal

import pytest
from longreel.training.stopping import Stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_update_is_whole(number: signal.Signals):
    before, done = signal.getsignal(number), []

    def update() -> None:
        with Stopping() as stopping, stopping.whole():
            signal.raise_signal(number)
            done.append("whole")

    with pytest.raises(KeyboardInterrupt):
        update()
    assert done == ["whole"]
    assert signal.getsignal(number) is before


def test_elsewhere_it_stops_at_once():
    done = []

    def work() -> None:
        with Stopping():
            signal.raise_signal(signal.SIGTERM)
            done.append("went on")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not done
