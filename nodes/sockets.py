"""The types of our own that connect nodes, and inputs that several nodes share."""

from __future__ import annotations

import re
from typing import Any

from comfy.samplers import SAMPLER_NAMES, SCHEDULER_NAMES
from comfy_api.latest import io

from ..film.first_frame import MAX_REFERENCES, Reference
from ..film.kv_memory import MEMFLOW, PRESETS, MemorySettings, MemorySettingsError
from ..film.reel.project import ProjectStore
from ..film.storyboard.shot import MAX_SEED
from ..host.files.paths import project_folder

# Where the node menu shows a node: by what one does with it.
START, FILM, CAST, MEMORY = "Longreel/start", "Longreel/film", "Longreel/cast", "Longreel/memory"
MOTION, INSTRUCTION, REPORT = "Longreel/motion", "Longreel/instruction", "Longreel/report"
TRAINING, MINIATURE = "Longreel/training", "Longreel/miniature"

StoryboardSocket = io.Custom("LONGREEL_STORYBOARD")
EngineSocket = io.Custom("LONGREEL_ENGINE")
ReelSocket = io.Custom("LONGREEL_REEL")
KeyframeClipSocket = io.Custom("LONGREEL_KEYFRAME_CLIP")
ReferenceSocket = io.Custom("LONGREEL_REFERENCE")
CastClipsSocket = io.Custom("LONGREEL_CAST_CLIPS")
CastDatasetSocket = io.Custom("LONGREEL_CAST_DATASET")
StatesSocket = io.Custom("LONGREEL_STATES")
InstructionDatasetSocket = io.Custom("LONGREEL_INSTRUCTION_DATASET")
InstructionAdapterSocket = io.Custom("LONGREEL_INSTRUCTION_ADAPTER")
WeaverDatasetSocket = io.Custom("LONGREEL_WEAVER_DATASET")
MotionAdapterSocket = io.Custom("LONGREEL_MOTION_ADAPTER")
MotionDatasetSocket = io.Custom("LONGREEL_MOTION_DATASET")
FlowSocket = io.Custom("LONGREEL_FLOW")
OpticalFlowSocket = io.Custom("OPTICAL_FLOW")

_CUSTOM = "custom"


def project_input(default: str) -> io.String.Input:
    """The name of a project, empty for none."""
    return io.String.Input(
        "project",
        default=default,
        tooltip="Every finished shot is kept under this name in output/longreel and used again, also after a crash or "
        "restart, as long as it and the shots before it are unchanged. Another name films everything anew; an empty "
        "one keeps shots only while ComfyUI runs.",
    )


def open_project(name: str) -> ProjectStore | None:
    """The project that a project input names, made where it is new; None without a name. Raises ReelError."""
    return ProjectStore(project_folder(name)) if name.strip() else None


def keep_rest_input() -> io.Boolean.Input:
    """Whether takes behind a cut stay when a shot before them changed."""
    return io.Boolean.Input(
        "keep_rest",
        default=False,
        optional=True,  # API prompts of before it was there go on working
        tooltip="On: when a shot changes, the ones behind the next cut stay as they were filmed, though they still "
        "remember the old take. Off: everything after a changed shot is filmed again.",
    )


def prefix_input(default: str) -> io.String.Input:
    """Where a node saves a file; check it with prefix_fault()."""
    return io.String.Input(
        "filename_prefix",
        default=default,
        tooltip="Folder and beginning of the file's name, below the output folder; a number is added.",
    )


def last_shot_input() -> io.Int.Input:
    """How far a storyboard is filmed."""
    return io.Int.Input(
        "last_shot",
        default=0,
        optional=True,
        min=0,
        max=10**6,
        tooltip="Film no further than this shot of the storyboard, counted from 1, to look at it before paying for the "
        "rest; what is filmed is used again. 0: all.",
    )


def size_inputs(width: int, height: int, tooltip: str, most: int = 16384) -> list[io.Input]:
    """The film's width and height in pixels, with their defaults. tooltip: of the width."""
    return [
        io.Int.Input("width", default=width, min=16, max=most, step=16, tooltip=tooltip),
        io.Int.Input("height", default=height, min=16, max=most, step=16, tooltip="Pixels; see width."),
    ]


def fps_input(tooltip: str) -> io.Float.Input:
    """Frames a second."""
    return io.Float.Input("fps", default=16.0, min=1.0, max=120.0, step=1.0, tooltip=tooltip)


def sampler_input(tooltip: str, advanced: bool | None = None) -> io.Combo.Input:
    """Core's samplers."""
    return io.Combo.Input("sampler", options=SAMPLER_NAMES, default="uni_pc", advanced=advanced, tooltip=tooltip)


def scheduler_input(tooltip: str, advanced: bool | None = None) -> io.Combo.Input:
    """Core's schedulers."""
    return io.Combo.Input("scheduler", options=SCHEDULER_NAMES, default="simple", advanced=advanced, tooltip=tooltip)


def boundary_input(default: float, tooltip: str, low: float, high: float, step: float) -> io.Float.Input:
    """Noise level below which the second of two models goes on."""
    return io.Float.Input("boundary", default=default, min=low, max=high, step=step, advanced=True, tooltip=tooltip)


def shot_number_input(tooltip: str, least: int = 1) -> io.Int.Input:
    """One shot of a reel, counted from 1."""
    return io.Int.Input("shot", default=1, min=least, max=10**6, tooltip=tooltip)


def seed_input(tooltip: str) -> io.Int.Input:
    """A seed that stays as it is from run to run, unless the user changes it."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=MAX_SEED,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip=tooltip,
    )


def numbers_of(text: str, what: str) -> list[int]:
    """Whole numbers of a text input, between commas, spaces or lines, a # before each allowed.

    what: they are, for the message. Raises ValueError of one sentence for anything else.
    """
    words = [word for word in re.split(r"[\s,;]+", text.strip()) if word]
    if strangers := [word for word in words if not re.fullmatch(r"#?[0-9]{1,9}", word)]:
        raise ValueError(f"{strangers[0]!r} is no number of {what}: write numbers as they are shown, such as 12, 24.")
    return [int(word.removeprefix("#")) for word in words]


def references_input(tooltip: str, least: int) -> io.Autogrow.Input:
    """Sockets for 1 to 8 references, one more than are connected; read the value with references_of()."""
    names = [f"reference_{number}" for number in range(1, MAX_REFERENCES + 1)]
    template = io.Autogrow.TemplateNames(ReferenceSocket.Input("reference", tooltip=tooltip), names=names, min=least)
    return io.Autogrow.Input("references", template=template, tooltip=tooltip)


def references_of(value: dict[str, Reference | None] | None) -> list[Reference]:
    """The references that are connected, in the order of their sockets."""
    numbered = sorted((value or {}).items(), key=lambda item: int(item[0].rpartition("_")[2]))
    return [reference for _, reference in numbered if reference is not None]


def loop_input() -> io.Combo.Input:
    """How a block is denoised."""
    return io.Combo.Input(
        "loop",
        options=["renoise", "euler"],
        default="renoise",
        advanced=True,
        tooltip="renoise denoises fully and adds fresh noise in every step, as distilled models expect; euler follows "
        "the flow step by step, for models that are not distilled (then use 20 steps or more).",
    )


def frames_per_block_input() -> io.Int.Input:
    """How many latent frames are denoised together."""
    return io.Int.Input(
        "frames_per_block",
        default=3,
        min=1,
        max=64,
        advanced=True,
        tooltip="Latent frames denoised together, as the model was trained (3). More: fewer, larger steps into the "
        "future. Shots are filmed in whole blocks and trimmed to length.",
    )


def memory_input() -> io.DynamicCombo.Input:
    """Settings of the KV memory; read the value with memory_settings()."""
    frames = "latent frames (4 pictures each)"
    return io.DynamicCombo.Input(
        "memory",
        options=[
            *(io.DynamicCombo.Option(name, []) for name in PRESETS),
            io.DynamicCombo.Option(
                _CUSTOM,
                [
                    io.Int.Input(
                        "window",
                        default=12,
                        min=0,
                        max=4096,
                        tooltip=f"Recent {frames} a new one sees, sink and current block included. More: steadier "
                        "motion, more memory and time. 0 keeps the whole film, which grows without bound.",
                    ),
                    io.Int.Input(
                        "sink",
                        default=MEMFLOW.sink,
                        min=0,
                        max=64,
                        tooltip=f"First {frames} of the film, seen for ever. More: the look drifts less but changes "
                        "less willingly. 0: no anchor.",
                    ),
                    io.Int.Input(
                        "bank",
                        default=MEMFLOW.bank,
                        min=0,
                        max=64,
                        tooltip=f"{frames.capitalize()} from long ago that match the prompt best. More: characters are "
                        "remembered over more cuts. 0: nothing beyond window and sink.",
                    ),
                    io.Int.Input(
                        "record_interval",
                        default=MEMFLOW.record_interval,
                        min=1,
                        max=1024,
                        advanced=True,
                        tooltip="Blocks between two additions to the bank. More: the bank reaches further back, with "
                        "gaps.",
                    ),
                    io.Combo.Input(
                        "record",
                        options=["interactive", "single"],
                        default=MEMFLOW.record,
                        advanced=True,
                        tooltip="What the bank records: the first frame of every interval (interactive, for films of "
                        "several prompts) or always the newest block (single, for one prompt).",
                    ),
                    io.Int.Input(
                        "active",
                        default=0,
                        min=0,
                        max=128,
                        advanced=True,
                        tooltip="Sink and bank frames that each attention head picks to read. Fewer: faster, less "
                        "remembered. 0 reads them all.",
                    ),
                    io.Combo.Input(
                        "positions",
                        options=["absolute", "relative"],
                        default=MEMFLOW.positions,
                        advanced=True,
                        tooltip="absolute keeps every frame where it was filmed, as MemFlow does; relative seats sink "
                        "and bank right before the window, so that distances stay short however long the film is.",
                    ),
                    io.Boolean.Input(
                        "keep_sink",
                        default=True,
                        advanced=True,
                        tooltip="On: the sink stays that of the film's start. Off: each new prompt renews it.",
                    ),
                    io.Boolean.Input(
                        "mask_padding",
                        default=False,
                        advanced=True,
                        tooltip="On: empty rows of the prompt do not count when the bank is matched with it. Off: as "
                        "published.",
                    ),
                    io.Boolean.Input(
                        "fresh_text",
                        default=False,
                        advanced=True,
                        tooltip="On: the bank is matched with the new prompt at once when it changes. Off: as "
                        "published, one block later.",
                    ),
                    io.Boolean.Input(
                        "fold_once",
                        default=False,
                        advanced=True,
                        tooltip="On: each recorded frame is offered to the bank once. Off: as published, in every "
                        "block until the next one is recorded.",
                    ),
                ],
            ),
        ],
        tooltip="What the model remembers. MemFlow: recent frames, the film's first ones, and a bank of old ones that "
        "match the prompt, best over cuts. LongLive: without the bank, faster. Self-Forcing: recent frames only. "
        "unbounded: everything, growing with the film. ShotStream: this shot, and 6 pictures spread over the shots "
        "before, anew at each cut; only for its own model. Use the one the model was trained for.",
    )


def memory_settings(value: dict[str, Any] | None) -> MemorySettings:
    """The settings that a memory input stands for. Raises MemorySettingsError where they contradict each other, and for
    None: so comes an input that was left out, or whose choice is none of ours, from who calls ComfyUI's API.
    """
    if value is None:
        raise MemorySettingsError(f"Choose a memory: one of {', '.join((*PRESETS, _CUSTOM))}.")
    chosen = {name: setting for name, setting in value.items() if name != "memory"}
    if value["memory"] != _CUSTOM:
        return PRESETS[value["memory"]]
    if missing := {"window", "sink", "bank"} - chosen.keys():
        raise MemorySettingsError(f"A custom memory needs memory.{min(missing)}: give it a number of frames.")
    return MemorySettings(**{**chosen, "window": chosen["window"] or None})
