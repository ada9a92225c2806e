"""What a film costs beside the network's own work, with the miniature.

    python benchmarks/film_cost.py length      peak memory and time per block of a 1-minute and a 10-minute film
    python benchmarks/film_cost.py overhead    the quick start through the server against bare rollout, decode, file

Predictions, written before the first run: the 10-minute film peaks within 5 % of the 1-minute one, because between
shots only latents on disk grow; graph, server, progress, reel files and previews cost under 5 % of the quick start.

Figures compare within one run on one machine; nothing here is asserted in a test.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

PACK = Path(__file__).resolve().parents[1]
WEIGHTS = PACK / "miniature" / "weights"
SHOT_SECONDS = 10.0


def open_engine() -> Any:
    """The causal engine on the shipped miniature, as the quick start sets it up."""
    from longreel.training.core.command_line import start_comfyui

    start_comfyui()
    from longreel.engines.causal import CausalEngine
    from longreel.engines.causal_schedule import default_sigmas
    from longreel.training.miniature.evaluate import load

    models = load(WEIGHTS)
    return CausalEngine((models.model,), models.clip, models.vae, 64, 64, 16.0, default_sigmas(models.model, 4))


@torch.inference_mode()
def film(seconds: float, folder: Path) -> dict[str, float]:
    """Film one long take shot by shot and decode it into a file; report this process's peak memory and times."""
    engine = open_engine()
    from longreel.film.reel.reel import Reel
    from longreel.film.storyboard.shot import Shot, TimedPrompt
    from longreel.host.files.video import VideoWriter
    from longreel.host.media.decode import film_frames
    from longreel.host.progress import Progress

    reel = Reel.empty(engine.layout())
    block_times: list[float] = []

    class Clocked(Progress):
        def block_done(self, latents: torch.Tensor) -> None:
            super().block_done(latents)
            block_times.append(time.perf_counter())

    actions = ("walks", "jumps", "spins", "sways", "stretches", "stands")
    shots = round(seconds / SHOT_SECONDS)
    for index in range(shots):
        prompt = TimedPrompt(0.0, f"A red ball with a crown {actions[index % len(actions)]} in the forest.")
        shot = Shot((prompt,), SHOT_SECONDS, seed=index, start="cut" if index == 0 else "continue")
        report = Clocked(10_000)
        report.start_shot(index + 1, shots, 1)
        reel = engine.film(shot, reel, report, engine.shot_inputs(shot))
    filmed = time.perf_counter()
    with VideoWriter(folder / "film.mp4", 64, 64, 16.0) as writer:
        for frames in film_frames(reel, engine.vae, 0, reel.frames):
            writer.write(frames)
    steps = [b - a for a, b in pairwise(block_times)]
    return {
        "seconds": seconds,
        "blocks": len(block_times),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "block_ms_first_ten": 1000 * statistics.median(steps[:10]),
        "block_ms_last_ten": 1000 * statistics.median(steps[-10:]),
        "decode_s": time.perf_counter() - filmed,
    }


def length() -> None:
    """Film 60 s and 600 s, each in a process of its own.

    glibc raises the size from which it gives memory back at once while a program runs, so that peaks of equal films
    differ by a tenth; here it stays at its first value.
    """
    rows = []
    for seconds in (60, 600):
        with tempfile.TemporaryDirectory() as folder:
            child = [sys.executable, __file__, "film", "--seconds", str(seconds), "--folder", folder]
            settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
            answer = subprocess.run(child, check=True, capture_output=True, text=True, env=settings).stdout
            answer = answer.splitlines()[-1]
        rows.append(json.loads(answer))
        print(json.dumps(rows[-1]))
    print(f"peak memory, 600 s over 60 s: {rows[1]['peak_mb'] / rows[0]['peak_mb']:.3f}")
    growth = rows[1]["block_ms_last_ten"] / rows[1]["block_ms_first_ten"]
    print(f"time per block, last over first ten of 600 s: {growth:.3f}")


@torch.inference_mode()
def bare(storyboard: str, seeds: int) -> float:
    """Seconds of the quick start's shots without graph, reel, progress or previews: rollout, decode, file."""
    engine = open_engine()  # first: it starts ComfyUI, which what is imported below asks for its device
    from longreel.film.reel.takes import plan_story, schedule_prompts
    from longreel.film.storyboard.text import parse_storyboard
    from longreel.host.families.wan import StreamingDecoder
    from longreel.host.files.video import VideoWriter
    from longreel.host.wan.rollout import Prompt, roll_out

    shots = parse_storyboard(storyboard).shots
    plans = plan_story(shots, engine.clock)

    def once(offset: int) -> float:
        started = time.perf_counter()
        memory, latents = None, []
        for shot, plan in zip(shots, plans):
            prompts = [
                Prompt(at, engine.clip.encode_from_tokens_scheduled(engine.clip.tokenize(prompt.text)))
                for at, prompt in schedule_prompts(shot, plan, engine.clock).changes
            ]
            shape = (1, 16, plan.latent_frames, engine.height // 8, engine.width // 8)
            filmed = roll_out(
                engine.model, prompts, shape, torch.tensor(engine.sigmas), settings=engine.memory, memory=memory,
                start=shot.start, seed=shot.seed + offset,
            )  # fmt: skip
            memory = filmed.memory
            latents.append((plan.take_start, filmed.latents))
        with tempfile.TemporaryDirectory() as folder, VideoWriter(Path(folder) / "film.mp4", 64, 64, 16.0) as writer:
            decoder = StreamingDecoder(engine.vae)
            for fresh, part in latents:
                if fresh:
                    decoder = StreamingDecoder(engine.vae)
                for frames in decoder.decode(part):
                    writer.write(frames)
        return time.perf_counter() - started

    once(0)
    return statistics.median(once(1000 * (i + 1)) for i in range(seeds))


def overhead(repeats: int) -> None:
    """The quick start through a real server, models warm, against the same work bare; medians of `repeats`."""
    from longreel.tests.server.harness import make_server

    prompt = json.loads((PACK / "tests" / "prompts" / "quickstart.json").read_text())
    board = next(node for node in prompt.values() if node["class_type"] == "LongreelStoryboard")
    for node in prompt.values():  # a project would reuse what the last repeat filmed
        if "project" in node["inputs"]:
            node["inputs"]["project"] = ""
    text = board["inputs"]["text"]
    with tempfile.TemporaryDirectory() as base, make_server(Path(base)) as server:
        times = []
        for repeat in range(repeats + 1):
            # Another seed of the first shot makes all shots new to every cache: later seeds follow from it.
            board["inputs"]["text"] = text.replace("seconds: 10\n", f"seconds: 10, seed: {repeat}\n", 1)
            started = time.perf_counter()
            assert server.queue(prompt).succeeded
            times.append(time.perf_counter() - started)
    through_server = statistics.median(times[1:])
    alone = bare(text, repeats)
    print(f"server {through_server:.2f} s, bare {alone:.2f} s, overhead {through_server / alone - 1:+.1%}")


def main() -> None:
    """Read the command line and run the benchmark it names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["length", "overhead", "film"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--folder", type=Path, default=Path())
    chosen = parser.parse_args()
    if chosen.what == "length":
        length()
    elif chosen.what == "overhead":
        overhead(chosen.repeats)
    else:
        print(json.dumps(film(chosen.seconds, chosen.folder)))


if __name__ == "__main__":
    main()
