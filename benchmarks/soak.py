"""Whether a server that films all day stays as it is: memory, threads, open files; and whether long films slow down.

    python benchmarks/soak.py [--films 200] [--shots 300] [--out FILE]

One real ComfyUI server on the CPU films stories of the smallest models there are (tests/tiny_models.py), each in a
project of its own and to a video; then one film of many shots. After the warm-up the median of the last fifth of the
films may be 2 % above that of the first fifth, at most. Seconds are the processor time of the server for a shot, by
tenths of the film; they are reported and not judged. For Linux, which has /proc. Ends with 1 where something grew.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

MOST = 1.02
FIGURES = ("rss_mb", "threads", "files")


def main() -> None:
    """Film, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=200)
    parser.add_argument("--warm-up", type=int, default=20, help="films before anything counts")
    parser.add_argument("--shots", type=int, default=300, help="of the one long film; 0 for none")
    parser.add_argument("--out", type=Path, help="JSON lines, one a film")
    chosen = parser.parse_args()
    from longreel.training.core.command_line import start_comfyui

    start_comfyui()
    from longreel.tests import tiny_models
    from longreel.tests.server.harness import make_server

    with tempfile.TemporaryDirectory() as folder:
        server = make_server(Path(folder))
        tiny_models.write(server.base / "models")
        with server:
            rows = many_films(server, chosen.films, chosen.out)
            seconds = long_film(server, chosen.shots) if chosen.shots else []
    if seconds:
        tenth = max(1, len(seconds) // 10)
        parts = [statistics.mean(seconds[at : at + tenth]) for at in range(0, len(seconds), tenth)]
        print(f"{len(seconds)} shots, processor seconds a shot by tenths: {' '.join(f'{each:.2f}' for each in parts)}")
    raise SystemExit(0 if flat(rows[chosen.warm_up :]) else 1)


def figures(pid: int) -> dict[str, float]:
    """What a process has: megabytes in memory, threads, open files."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return {"rss_mb": int(status["VmRSS"].split()[0]) / 1024, "threads": int(status["Threads"]), "files": files}


def many_films(server: Any, films: int, out: Path | None) -> list[dict[str, float]]:
    """One row of figures after each film."""
    from longreel.tests.server.film_prompts import SHOTS, story

    rows: list[dict[str, float]] = []
    for number in range(films):
        outcome = server.queue(story(f"soak {number}", *(f"seed: {number}, {shot}" for shot in SHOTS)))
        if not outcome.succeeded:
            raise SystemExit(f"Film {number + 1} failed: {outcome.error}")
        rows.append(figures(server.pid))
        if out is not None:
            with out.open("a", encoding="ascii") as lines:
                lines.write(json.dumps({"film": number + 1, **rows[-1]}) + "\n")
        if number % 10 == 9:
            print(f"{number + 1} films: {rows[-1]}", flush=True)
    return rows


def long_film(server: Any, shots: int) -> list[float]:
    """Processor seconds of the server for each shot of one film."""
    from longreel.tests.server.film_prompts import story

    at: list[float] = []

    def watch(event: dict[str, Any]) -> None:
        if event["type"] == "executing" and str(event["data"].get("node") or "").startswith("film."):
            at.append(_processor(server.pid))

    texts = [f"seconds: 0.3, seed: {number}\nA red ball jumps at the beach." for number in range(shots)]
    outcome = server.queue(story("soak of many shots", *texts), on_event=watch)
    if not outcome.succeeded:
        raise SystemExit(f"The film of {shots} shots failed: {outcome.error}")
    return [after - before for before, after in pairwise(at)]


def _processor(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def flat(rows: list[dict[str, float]]) -> bool:
    """Whether nothing grew over these films; says so, a line a figure."""
    fifth = max(1, len(rows) // 5)
    kept = True
    for name in FIGURES:
        first, last = (statistics.median(row[name] for row in part) for part in (rows[:fifth], rows[-fifth:]))
        grew = last > first * MOST
        kept &= not grew
        print(f"{name}: {first:.0f} at first, {last:.0f} at last, {last / first - 1:+.1%}{'  GREW' if grew else ''}")
    return kept


if __name__ == "__main__":
    main()
