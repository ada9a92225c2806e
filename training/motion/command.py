"""Three commands: `motion-data` encodes clips and their flow, `motion` trains an adapter, `motion-judge` measures it.

ComfyUI decides on devices when it is first imported, so whatever imports it is imported by a command that has begun.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...film.motion import ENCODINGS, MotionError
from ..core.command_line import Command, add_model_arguments, command_line, load_base
from ..core.settings import add_arguments, chosen_settings
from ..miniature.evaluate import print_table
from ..miniature.export import FILES
from .data import MINIATURE as SMALL
from .data import Encoders, MotionDataError, MotionSpec, encode_clips, load_examples, spec_of, world_clips
from .settings import MINIATURE, PAPER


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--videos", type=Path, help="folder of videos, each with its caption in a .txt beside it")
    source.add_argument("--world", type=int, metavar="N", help="N clips of the miniature's small world, of exact flow")
    parser.add_argument("--folder", type=Path, required=True, help="the dataset; what is there already is kept")
    usual = MotionSpec()
    parser.add_argument("--width", type=int, default=usual.width, help="of the clips (small world: 64)")
    parser.add_argument("--height", type=int, default=usual.height, help="of the clips (small world: 64)")
    parser.add_argument(
        "--frames", type=int, help="of each clip, 1 more than a multiple of 4: default 49, small world 81"
    )
    parser.add_argument("--fps", type=float, default=usual.fps, help="frame rate that videos are brought to")
    parser.add_argument("--encoding", choices=ENCODINGS, help="of flow as pictures: default hsv_black")
    parser.add_argument(
        "--saturation", type=float, help="displacement of the strongest colour, as a share of the diagonal: default "
        f"{usual.sigma:g}, small world {SMALL.sigma:g}",
    )  # fmt: skip
    parser.add_argument(
        "--flow", type=Path, help="RAFT weights of torchvision (raft_large); without, blocks are matched"
    )
    parser.add_argument("--most", type=int, default=0, help="clips of each video, 0 for all")
    parser.add_argument(
        "--measured", action="store_true", help="clips to measure by: also shuffled, and with their flow"
    )
    parser.add_argument("--held-out", action="store_true", help="small world: combinations that training never shows")
    parser.add_argument("--seed", type=int, default=0, help="small world: which clips")
    parser.add_argument("--workers", type=int, default=1, help="small world: processes that draw")
    _add_encoder_arguments(parser)


def _add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, "Wan model that is trained")
    parser.add_argument("--text", type=Path, help="text encoder of --model")
    parser.add_argument("--vae", type=Path, help="VAE of --model")


def run_data(chosen: argparse.Namespace, weights: Path) -> None:
    """`motion-data`."""
    with command_line(MotionDataError, MotionError):
        from .sources import list_videos, video_clips

        encoders = _open(chosen, weights)
        drawn: dict[str, Any] = {"encoding": chosen.encoding, "sigma": chosen.saturation}
        drawn = {name: value for name, value in drawn.items() if value is not None}
        if chosen.videos is None:
            spec = replace(SMALL, **drawn, frames=chosen.frames or SMALL.frames)
            sources = world_clips(chosen.world, spec, seed=chosen.seed, held_out=chosen.held_out)
        else:
            estimator, name = (None, "blocks") if chosen.flow is None else (_raft(chosen.flow), chosen.flow.stem)
            spec = MotionSpec(
                chosen.width, chosen.height, chosen.frames or MotionSpec.frames, chosen.fps, flow_model=name, **drawn
            )  # fmt: skip
            sources = video_clips(list_videos(chosen.videos), spec, estimator, most=chosen.most)
        if chosen.videos is None and chosen.model is None:
            from .world import encode_world

            made = encode_world(
                sources, encoders, spec, chosen.folder, weights, measured=chosen.measured, workers=chosen.workers
            )
        else:
            made = encode_clips(sources, encoders, spec, chosen.folder, measured=chosen.measured)
        print(f"{len(sources)} clips in {chosen.folder}, {made} of them encoded now.")


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="a dataset made by motion-data")
    parser.add_argument("--measure", type=Path, help="a dataset made by motion-data --measured, of other clips: how "
                        "good the predicted motion is goes into the file")  # fmt: skip
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints, curve and adapter (resumed)")
    add_arguments(parser, PAPER, MINIATURE)
    _add_encoder_arguments(parser)


def run_train(chosen: argparse.Namespace, weights: Path) -> None:
    """`motion`. weights: where the miniature's files are."""
    with command_line(MotionDataError, MotionError):
        from .evaluate import measure
        from .train import train_motion

        encoders = _open(chosen, weights)
        settings = chosen_settings(chosen, PAPER if chosen.model else MINIATURE)
        examples, empty = load_examples(chosen.data)
        path = train_motion(examples, empty, encoders, spec_of(chosen.data), settings, chosen.folder)
        if chosen.measure is not None and settings.lambda_motion:
            measure(path, chosen.measure, encoders)
        print(path)


def _add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", type=Path, action="append", default=[], help="a motion adapter; may be repeated")
    parser.add_argument("--data", type=Path, required=True, help="a dataset made by motion-data --measured")
    parser.add_argument("--films", type=int, default=0, help="held-out prompts that are filmed and read by the probe")
    parser.add_argument("--steps", type=int, default=4, help="of each film")
    parser.add_argument("--cfg", type=float, default=1.0, help="guidance by the prompt")
    parser.add_argument("--scales", type=float, nargs="*", default=[3.0], help="of inner guidance")
    parser.add_argument(
        "--windows", type=float, nargs="*", default=[0.5], help="parts of the steps with inner guidance"
    )
    parser.add_argument("--no-gate", action="store_true", help="the full scale at noise levels of bad motion, too")
    parser.add_argument("--fallbacks", action="store_true", help="also film with guidance from a weak model")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--seed", type=int, default=0)
    _add_encoder_arguments(parser)


def run_judge(chosen: argparse.Namespace, weights: Path) -> None:
    """`motion-judge`: permutation gaps, flow by noise level, and films read by the probe."""
    with command_line(MotionDataError, MotionError):
        from ...host.adapters.motion import read_adapter
        from .evaluate import MEASURED, adapter_matcher, flow_gate, permutation_gap
        from .films import judge_motion

        encoders = _open(chosen, weights)
        examples = load_examples(chosen.data)[0]
        adapters = {path.parent.name + "/" + path.stem: read_adapter(path) for path in chosen.adapter}
        gaps: dict[str, dict[str, float]] = {}
        flows: dict[str, dict[str, float]] = {}
        for name, adapter in [("base", None), *adapters.items()]:
            matcher = adapter_matcher(encoders.model, adapter)
            found = permutation_gap(matcher, examples, seed=chosen.seed)
            gaps[name] = {f"{level:g}": gap for level, gap in found.items()}
            if adapter is not None:
                gate = flow_gate(matcher, examples[:MEASURED], spec_of(chosen.data), encoders.model, encoders.vae)
                flows[name] = {f"{level.sigma:g}": level.error / level.trivial for level in gate.levels}
                flows[f"{name}, direction"] = {f"{level.sigma:g}": level.direction for level in gate.levels}
        print_table("Permutation gap by noise level", gaps)
        if flows:
            print_table("Endpoint error over that of no motion, and direction in degrees", flows)
        films: dict[str, dict[str, float]] = {}
        if chosen.films:
            films = judge_motion(
                encoders,
                weights,
                adapters,
                chosen.films,
                frames=spec_of(chosen.data).frames,
                steps=chosen.steps,
                cfg=chosen.cfg,
                scales=chosen.scales,
                ends=chosen.windows,
                gate=not chosen.no_gate,
                fallbacks=chosen.fallbacks,
                seed=chosen.seed,
            )
            print_table(f"{chosen.films} films of held-out prompts, {chosen.steps} steps, cfg {chosen.cfg:g}", films)
        if chosen.json is not None:
            chosen.json.write_text(json.dumps({"gap": gaps, "flow": flows, "films": films}, indent=1), encoding="utf-8")


def _open(chosen: argparse.Namespace, weights: Path) -> Encoders:
    """The models, by core's loaders."""
    import comfy.model_management
    import comfy.sd
    import comfy.utils

    from ...host.miniature_clip import load_miniature_clip
    from ...host.model_fingerprint import fingerprint_clip, fingerprint_vae

    if chosen.model is not None and not (chosen.text and chosen.vae):
        raise MotionDataError("Your own --model needs its --text encoder and its --vae too.")
    on_cpu = comfy.model_management.get_torch_device().type == "cpu"
    path = chosen.model or weights / FILES["dit"]
    model = load_base(path, chosen.base_dtype)
    if chosen.model is None:
        clip: Any = load_miniature_clip(str(weights / FILES["text"]))
    else:
        clip = comfy.sd.load_clip([str(chosen.text)], clip_type=comfy.sd.CLIPType.WAN)
    vae_path = chosen.vae or weights / FILES["vae"]
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(vae_path)), dtype=torch.float32 if on_cpu else None)
    return Encoders(model, clip, vae, path.stem, f"{fingerprint_clip(clip)[:16]} {fingerprint_vae(vae)[:16]}")


def _raft(path: Path) -> Any:
    """What core's Load Optical Flow Model gives, of a file with torchvision's weights."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.utils
    from torchvision.models.optical_flow import raft_large

    network = raft_large(weights=None, progress=False)
    network.load_state_dict(comfy.utils.load_torch_file(str(path), safe_load=True))
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(network.eval(), device, comfy.model_management.unet_offload_device())


COMMANDS = {
    "motion-data": Command("clips with their flow, encoded", _add_data_arguments, run_data),
    "motion": Command("a motion adapter from such clips (VideoJAM)", _add_train_arguments, run_train, shared=True),
    "motion-judge": Command(
        "permutation gap, predicted flow and films of motion adapters", _add_judge_arguments, run_judge
    ),
}
