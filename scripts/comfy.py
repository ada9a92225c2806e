#!/usr/bin/env python3
"""One command from a bare machine to a film, an editor, or a test report.

    python3 scripts/comfy.py film     set up, film the quick-start storyboard with the miniature, say where the MP4 lies
    python3 scripts/comfy.py serve    set up, start ComfyUI with the pack, say its address
    python3 scripts/comfy.py test     set up, run every test; more arguments go to pytest (--device cuda: on a GPU)

Needs Python 3.10 to 3.14 and a network on the first run, nothing else. `COMFYUI_PATH` names a ComfyUI to use instead of
the one that is fetched; `LONGREEL_HOME` names the folder to set up in instead of `.comfy` in the repository.
"""

import sys

if not (3, 10) <= sys.version_info[:2] <= (3, 14):
    sys.exit("Longreel needs Python 3.10 to 3.14; this is Python {}.{}.".format(*sys.version_info))

import argparse
import io
import json
import os
import re
import signal
import subprocess
import textwrap
import time
from pathlib import Path

from comfyui_server import Event, Outcome, PromptRejected, Server, ServerError, clean_environment, port_is_free
from comfyui_setup import Place, SetupError, find_place, has_cuda, in_words, install_chromium, prepare

REPOSITORY = Path(__file__).resolve().parent.parent
QUICKSTART = REPOSITORY / "tests" / "prompts" / "quickstart.json"
DEFAULT_PORT = 8188
MOST_TEST_PROCESSES = 4
VIDEO_ENDINGS = (".mp4", ".webm")


def film(place: Place) -> int:
    """Film the quick-start storyboard and say where the video lies."""
    start = time.monotonic()
    prompt = json.loads(QUICKSTART.read_text(encoding="utf-8"))
    prepare(place)
    ready = time.monotonic()
    flags = ["--disable-api-nodes", *database(place, []), *([] if has_cuda(place) else ["--cpu"])]
    print("- Starting ComfyUI", flush=True)
    with Server(place.python, place.comfyui, place.base, flags, log=place.home / "server.log") as server:
        answering = time.monotonic()
        print("- Filming", flush=True)
        outcome = server.queue(prompt, on_event=ProgressPrinter())
        done = time.monotonic()
        videos = [server.path_of(file) for file in outcome.files() if file["filename"].endswith(VIDEO_ENDINGS)]
    if not report(outcome, videos):
        return 1
    set_up, startup, filming = ready - start, answering - ready, done - answering
    print(f"Set-up {set_up:.0f} s, start of ComfyUI {startup:.0f} s, filming {filming:.0f} s.")
    for video in videos:
        print(f"Your film: {video}")
    return 0


def database(place: Place, flags: list[str]) -> list[str]:
    """Where ComfyUI keeps its database: in its base directory, unless `flags` say where.

    By itself it looks in a folder beside its source that a fresh one does not have, and reports that in red.
    """
    if "--database-url" in flags:
        return []
    return ["--database-url", f"sqlite:///{(place.base / 'user' / 'comfyui.db').as_posix()}"]


class ProgressPrinter:
    """Print the pack's progress texts as they come; of those that count (block 7/20), one every two seconds.

    Where the server tells how far its bar is, lines that count end with the percentage and the time that is left.
    """

    def __init__(self) -> None:
        self._next = 0.0
        self._most = self._value = 0.0  # of the bar
        self._began = (0.0, 0.0)  # the bar's first value and when it came

    def __call__(self, event: Event) -> None:
        """Take one message of the server."""
        if event["type"] == "progress":
            self._note(event["data"]["value"], event["data"]["max"])
        if event["type"] != "progress_text":
            return
        text, now = event["data"]["text"], time.monotonic()
        counting = re.search(r"(\d+)/(\d+)$", text)
        if counting and counting[1] != counting[2] and now < self._next:
            return
        self._next = now + 2
        print(textwrap.indent(text + (self._left(now) if counting else ""), "  "), flush=True)

    def _note(self, value: float, most: float) -> None:
        if most != self._most or value < self._value:
            self._most, self._began = most, (value, time.monotonic())
        self._value = value

    def _left(self, now: float) -> str:
        """How far the bar is and how long it will still take, empty where it has not moved yet."""
        first, began = self._began
        if not self._most or self._value <= first:
            return ""
        left = (now - began) / (self._value - first) * (self._most - self._value)
        return f" ({100 * self._value / self._most:.0f} %, about {in_words(left)} left)"


def report(outcome: Outcome, videos: list[Path]) -> bool:
    """Say what went wrong, if anything did; True where there is a film."""
    if outcome.error is not None:
        message = outcome.error["exception_message"].strip()
        print(f"Filming failed in {outcome.error['node_type']}: {message}", file=sys.stderr)
    elif outcome.interrupted:
        print("Filming was interrupted.", file=sys.stderr)
    elif not videos:
        print("The prompt ran, but no node of it saved a video.", file=sys.stderr)
    return outcome.succeeded and bool(videos)


def wait_for_port(port: int) -> None:
    """Return once nobody listens on the port; says that it waits."""
    if port_is_free(port):
        return
    print(f"- Port {port} is taken, perhaps by another ComfyUI: waiting for it. --port N takes another.", flush=True)
    while not port_is_free(port):
        time.sleep(0.5)


def serve(place: Place, flags: list[str], port: int) -> int:
    """Run ComfyUI with the pack until it is stopped; `flags` are ComfyUI's own."""
    prepare(place)
    if "--cpu" not in flags and sys.platform != "darwin" and not has_cuda(place):
        flags = ["--cpu", *flags]
    wait_for_port(port)
    flags = [*database(place, flags), *flags]
    with Server(place.python, place.comfyui, place.base, flags, port=port) as server:
        print(f"\nComfyUI with Longreel: {server.url}   (Ctrl-C stops it)\n", flush=True)
        return server.wait()


def test(place: Place, arguments: list[str]) -> int:
    """Run the whole suite; linters and type checker are tests too, so pytest's last line is the verdict on all."""
    prepare(place, tests=True)
    no_browser = install_chromium(place)
    if no_browser is not None:
        print(f"- Browser tests are skipped: {no_browser}", flush=True)
    environment = clean_environment()
    if not arguments:
        # The whole suite, on the CPU: PyTorch's threads would wait for each other where processes share the cores.
        cores = os.cpu_count() or 1
        processes = min(cores, MOST_TEST_PROCESSES)
        arguments = [f"--numprocesses={processes}", "--dist=loadscope"]
        environment.setdefault("OMP_NUM_THREADS", str(cores // processes))
    # The program and not `python -m pytest`, which would put the repository's root on the path.
    command = [str(place.script("pytest")), "--durations=10", f"--junitxml={place.home / 'tests.xml'}", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment).returncode


def main() -> int:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("film", "serve", "test"))
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="of serve")
    options, rest = parser.parse_known_args()
    if rest[:1] == ["--"]:
        rest = rest[1:]
    for stream in (sys.stdout, sys.stderr):
        # A name in another language must not end a film on a console that cannot print it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Ended from outside, stop the server as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        place = find_place(REPOSITORY)
        if options.command == "serve":
            return serve(place, rest, options.port)
        if options.command == "test":
            return test(place, rest)
        if rest:
            parser.error(f"film takes no arguments: {' '.join(rest)}")
        return film(place)
    except (SetupError, ServerError, PromptRejected) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
