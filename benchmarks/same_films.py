"""Whether two checkouts of the pack film the same latents, bit for bit.

    python benchmarks/same_films.py BEFORE AFTER [--work FOLDER] [--prompts NAME ...]

Each checkout films the same shipped prompts (`tests/prompts` of BEFORE) in a real ComfyUI server of its own on the CPU,
one after the other, in the environment that runs this command. A checkout whose films lie in FOLDER already is not
filmed again: its folder there is named after its commit, or its path where it has changes that are not committed.
Ends with 1 where a shot differs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch
from safetensors import safe_open

REPOSITORY = Path(__file__).resolve().parent.parent
PROMPTS = ("quickstart", "long-take", "film-weaver-story", "cast-miniature", "memory-story")
FLAGS = ("--cpu", "--disable-api-nodes", "--database-url", "sqlite:///:memory:")


def main() -> None:
    """Film with both checkouts and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".comfy" / "same-films")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    chosen = parser.parse_args()
    before, after = (
        film(checkout.resolve(), chosen.before.resolve(), chosen.prompts, chosen.work)
        for checkout in (chosen.before, chosen.after)
    )
    same = [compare(name, before / name, after / name) for name in chosen.prompts]
    raise SystemExit(0 if all(same) else 1)


def film(checkout: Path, prompts_of: Path, names: list[str], work: Path) -> Path:
    """Queue the prompts on the checkout's own server; its folder under `work`, with the shots of each prompt."""
    done = work / folder_name(checkout)
    missing = [name for name in names if not (done / name).is_dir()]
    if not missing:
        return done
    base = work / "base"
    shutil.rmtree(base, ignore_errors=True)
    for folder in ("custom_nodes", "input", "output", "models", "user", "temp"):
        (base / folder).mkdir(parents=True)
    (base / "custom_nodes" / "longreel").symlink_to(checkout, target_is_directory=True)
    comfyui = Path(next(iter(importlib.util.find_spec("comfy").submodule_search_locations))).parent
    server_module = load(checkout / "scripts" / "comfyui_server.py")
    log = work / f"{done.name}.log"
    with server_module.Server(Path(sys.executable), comfyui, base, FLAGS, log=log) as server:
        for name in missing:
            before = set((base / "output" / "longreel").rglob("*.safetensors"))
            outcome = server.queue(json.loads((prompts_of / "tests" / "prompts" / f"{name}.json").read_text()))
            if not outcome.succeeded:
                raise SystemExit(f"{checkout}: {name} failed: {outcome.error}")
            shots = set((base / "output" / "longreel").rglob("*.safetensors")) - before
            for number, shot in enumerate(sorted(shots, key=lambda file: file.stat().st_mtime_ns)):
                target = done / f"{name}.part" / f"{number:02} {shot.name}"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(shot, target)
            (done / f"{name}.part").rename(done / name)
            print(f"{checkout.name}: {name}, {len(shots)} shots", flush=True)
    return done


def folder_name(checkout: Path) -> str:
    """The commit where the work tree is clean, else the path."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(checkout), *arguments], check=True, capture_output=True, text=True
        ).stdout

    return (
        str(checkout).strip("/").replace("/", "-") if git("status", "--porcelain") else git("rev-parse", "HEAD").strip()
    )


def load(script: Path) -> ModuleType:
    """A checkout's own server script, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"server_of_{abs(hash(script))}", script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def compare(name: str, before: Path, after: Path) -> bool:
    """Print a line for each shot; whether all are equal in every tensor and as many."""
    old, new = sorted(before.iterdir()), sorted(after.iterdir())
    same = len(old) == len(new)
    for number, (one, other) in enumerate(zip(old, new)):
        with safe_open(one, "pt") as a, safe_open(other, "pt") as b:
            names, others = set(a.keys()), set(b.keys())
            keys = sorted(names | others)
            differing = sorted(names ^ others) + [
                key for key in sorted(names & others) if not torch.equal(a.get_tensor(key), b.get_tensor(key))
            ]
        kept = one.name.split()[-1] == other.name.split()[-1]
        verdict = "identical" if not differing else f"DIFFERS in {', '.join(differing[:5])}"
        print(
            f"{name}, shot {number + 1}: {verdict} ({len(keys)} tensors; fingerprint {'same' if kept else 'another'})"
        )
        same &= not differing
    if len(old) != len(new):
        print(f"{name}: {len(old)} shots before, {len(new)} after")
    return same


if __name__ == "__main__":
    main()
