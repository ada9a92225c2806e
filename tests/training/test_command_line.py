import os
import signal
import subprocess
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


def test_commands_are_listed_before_comfyui_decides_on_devices() -> None:
    """Imported too early it wants a GPU where there is none, and another process's where there are several."""
    probe = (
        "import atexit, sys, longreel.training.__main__ as m;"
        "atexit.register(lambda: print([name for name in sys.modules if name.startswith('comfy')]));"
        "m.main()"
    )
    done = subprocess.run([sys.executable, "-c", probe, "--help"], capture_output=True, text=True, check=True, cwd="/")
    assert all(name in done.stdout for name in ("cast-lora", "weaver-lora", "memory-lora", "miniature", "causal"))
    assert done.stdout.splitlines()[-1] == "[]"
