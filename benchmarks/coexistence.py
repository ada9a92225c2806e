"""Whether other packs beside ours change what is filmed: the quick start with and without them, compared bit for bit.

    python benchmarks/coexistence.py PACK_FOLDER ... [--shots N] [--site FOLDER] [--work FOLDER]

A real ComfyUI server of its own films each time, on the CPU, in the environment that runs this command. What the packs
require must be there, or in a folder that both servers have on their path (`pip install --target FOLDER -r ...`). A
pack that ComfyUI cannot import is named and counts as a failure. Ends with 1 where one is missing or a shot differs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

from same_films import FLAGS, REPOSITORY, compare, load

PROMPT = "quickstart"


def main() -> None:
    """Film alone, film with the packs, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", nargs="+", type=Path)
    parser.add_argument("--shots", type=int, default=0, help="how many of the quick start's shots; 0 for all")
    parser.add_argument("--site", type=Path, help="what the packs require, as pip install --target makes it")
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".comfy" / "coexistence")
    chosen = parser.parse_args()
    packs = [pack.resolve() for pack in chosen.packs]
    alone, _ = film(chosen.work / "alone", [], chosen)
    beside, missing = film(chosen.work / "beside", packs, chosen)
    same = compare(PROMPT, alone, beside)
    for name in missing:
        print(f"{name}: ComfyUI did not import it, see {chosen.work / 'beside' / 'server.log'}")
    raise SystemExit(0 if same and not missing else 1)


def film(base: Path, packs: list[Path], chosen: argparse.Namespace) -> tuple[Path, list[str]]:
    """The folder with the shots that a server with these packs films, in order; and the packs that are not there."""
    shutil.rmtree(base, ignore_errors=True)
    for folder in ("custom_nodes", "input", "output", "models", "user", "temp", "shots"):
        (base / folder).mkdir(parents=True)
    for pack in (REPOSITORY, *packs):
        name = "longreel" if pack == REPOSITORY else pack.name
        (base / "custom_nodes" / name).symlink_to(pack, target_is_directory=True)
    if chosen.site:
        # ComfyUI runs a pack's prestartup_script.py before it imports any pack.
        (base / "custom_nodes" / "site").mkdir()
        (base / "custom_nodes" / "site" / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
        line = f"import sys\n\nsys.path.append({str(chosen.site.resolve())!r})\n"
        (base / "custom_nodes" / "site" / "prestartup_script.py").write_text(line)
    prompt = json.loads((REPOSITORY / "tests" / "prompts" / f"{PROMPT}.json").read_text(encoding="ascii"))
    for node in prompt.values():
        if node["class_type"] == "LongreelFilmStoryboard":
            node["inputs"]["last_shot"] = chosen.shots
    comfyui = Path(next(iter(importlib.util.find_spec("comfy").submodule_search_locations))).parent
    server = load(REPOSITORY / "scripts" / "comfyui_server.py")
    with server.Server(Path(sys.executable), comfyui, base, FLAGS, log=base / "server.log") as running:
        modules = {node["python_module"].rpartition(".")[2] for node in running.object_info().values()}
        outcome = running.queue(prompt)
    if not outcome.succeeded:
        raise SystemExit(f"The film beside {[pack.name for pack in packs]} failed: {outcome.error}")
    files = (base / "output" / "longreel").rglob("*.safetensors")
    for number, shot in enumerate(sorted(files, key=lambda file: file.stat().st_mtime_ns)):
        shutil.copy(shot, base / "shots" / f"{number:02} {shot.name}")
    print(f"{base.name}: {len(os.listdir(base / 'shots'))} shots, nodes of {len(modules)} modules", flush=True)
    return base / "shots", [pack.name for pack in packs if pack.name not in modules]


if __name__ == "__main__":
    main()
