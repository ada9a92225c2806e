"""Filming with caches: the CLIP that retrieves keyframes, a LoRA trained with caches, and the engine."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io
from typing_extensions import override

from ..engines.dual_cache import CacheGuidedEngine
from ..engines.dual_cache_backends import BACKENDS, make_backend
from ..engines.engine import EngineError
from ..film.dual_cache import CacheNoise, ChoicePolicy, RetrievalPolicy
from ..host.adapters.dual_cache import load_cache_lora, load_storymem_lora
from ..host.files.paths import CLIP_KIND
from ..host.media.embedder import DEFAULT_ARCHITECTURE, Embedder, load_embedder
from ..host.sampling import SamplerSettings
from .sockets import (
    START,
    EngineSocket,
    KeyframeClipSocket,
    boundary_input,
    fps_input,
    sampler_input,
    scheduler_input,
    size_inputs,
)

_WEIGHTS = (".safetensors", ".pt", ".bin")
_LORAS = {"longreel": load_cache_lora, "storymem": load_storymem_lora}


class LongreelKeyframeClip(io.ComfyNode):
    """An open_clip model from a file."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelKeyframeClip",
            display_name="Load Keyframe CLIP",
            category=START,
            description="Loads the CLIP model that matches keyframes with prompts. Put its weights into "
            "models/open_clip; nothing is downloaded.",
            search_aliases=["open_clip", "clip loader", "retrieval", "embedder"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[name for name in folder_paths.get_filename_list(CLIP_KIND) if name.endswith(_WEIGHTS)],
                    tooltip="Weights in models/open_clip. A larger model tells characters apart better and takes "
                    "longer. Press R to look again.",
                ),
                io.String.Input(
                    "architecture",
                    default=DEFAULT_ARCHITECTURE,
                    tooltip="What the weights were made for, by open_clip's name, such as ViT-B-32. It does not count "
                    "where open_clip_config.json lies beside them.",
                ),
            ],
            outputs=[KeyframeClipSocket.Output(display_name="keyframe_clip")],
        )

    @override
    @classmethod
    def execute(cls, file: str, architecture: str) -> io.NodeOutput:
        path = Path(folder_paths.get_full_path_or_raise(CLIP_KIND, file))
        return io.NodeOutput(load_embedder(path, architecture))


class LongreelFilmWeaverLora(io.ComfyNode):
    """A LoRA that was trained with cache tokens."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelFilmWeaverLora",
            display_name="FilmWeaver LoRA Loader",
            category=START,
            description="Loads a LoRA that Longreel trained with caches. How the caches lie in time and space comes "
            "with the file and stays on the model. Load a pair on both models of Wan 2.2 14B. StoryMem's released pair "
            "loads here too, at the scale it was trained with.",
            search_aliases=["lora", "dual cache", "cache tokens", "storymem"],
            inputs=[
                io.Model.Input("model", tooltip="The Wan model that the LoRA was trained on."),
                io.Combo.Input(
                    "file",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="A file of models/loras made by Longreel's trainer (one without a layout is refused), or "
                    "StoryMem's, see made_by.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="More: the caches count more. Less: nearer to the model as it was, which cannot read them.",
                ),
                io.Combo.Input(
                    "made_by",
                    options=list(_LORAS),
                    default="longreel",
                    tooltip="longreel: our trainer, for the filmweaver backend. storymem: StoryMem's release "
                    "(backbone_high_noise, backbone_low_noise), for the storymem backend; its weights are "
                    "CC-BY-NC-4.0, not for commercial use. SVI's load in core's Load LoRA.",
                    optional=True,
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @override
    @classmethod
    def execute(cls, model: ModelPatcher, file: str, strength: float, made_by: str = "longreel") -> io.NodeOutput:
        path = Path(folder_paths.get_full_path_or_raise("loras", file))
        return io.NodeOutput(_LORAS[made_by](model, path, strength))


class LongreelCacheGuidedEngine(io.ComfyNode):
    """Models and settings to a cache-guided engine."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelCacheGuidedEngine",
            display_name="Cache-Guided Engine",
            category=START,
            description="Films shot by shot and shows the model keyframes of earlier shots that match the prompt, so "
            "that characters and places come back after a cut. Unofficial implementation of FilmWeaver's dual cache; "
            "works with Bernini-R, Phantom, VACE, StoryMem and SVI 2.0 Pro as they are.",
            search_aliases=["filmweaver", "multi shot", "consistent characters", "bernini", "phantom", "vace", "svi"],
            inputs=_inputs(),
            outputs=[EngineSocket.Output(display_name="engine")],
        )

    @override
    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        keyframe_clip: Embedder,
        backend: str,
        width: int,
        height: int,
        fps: float,
        negative: str,
        steps: int,
        cfg: float,
        sampler: str,
        scheduler: str,
        keyframes: int,
        per_character: int,
        new_keyframes: int,
        shot_noise: float,
        history_noise: float,
        history_strength: float,
        reference_cfg: float,
        boundary: float,
        low_noise_model: ModelPatcher | None = None,
    ) -> io.NodeOutput:
        if clip is None:
            raise EngineError("The loader gave no text encoder: connect one that belongs to the model.")
        engine = CacheGuidedEngine(
            models=(model,) if low_noise_model is None else (model, low_noise_model),
            clip=clip,
            vae=vae,
            embedder=keyframe_clip,
            backend=make_backend(backend, model),
            width=width,
            height=height,
            fps=fps,
            negative=negative,
            sampling=SamplerSettings(steps, cfg, sampler, scheduler, reference_cfg, boundary),
            noise=CacheNoise(shot_noise, history_noise, history_strength),
            choice=ChoicePolicy(count=new_keyframes),
            policy=RetrievalPolicy(count=keyframes, per_character=per_character),
        )
        engine.check()
        return io.NodeOutput(engine)


def _inputs() -> list[io.Input]:
    part = {"min": 0.0, "max": 1.0, "step": 0.05, "advanced": True}
    return [
        io.Model.Input("model", tooltip="The video model; of Wan 2.2 14B the high-noise one."),
        io.Clip.Input("clip", tooltip="The text encoder that belongs to the model (umt5_xxl for Wan)."),
        io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
        KeyframeClipSocket.Input("keyframe_clip", tooltip="Matches keyframes with prompts."),
        io.Model.Input(
            "low_noise_model", optional=True, tooltip="The low-noise model of Wan 2.2 14B; others have none."
        ),
        io.Combo.Input(
            "backend",
            options=list(BACKENDS),
            default="bernini",
            tooltip="What the model is. filmweaver: trained with caches, after FilmWeaver LoRA Loader; remembers "
            "keyframes and motion. bernini: up to 8 keyframes, a shot in one piece. phantom: up to 4. vace: one "
            "keyframe, and motion. storymem (Wan 2.2 I2V 14B pair with its LoRAs): up to 10, and motion. svi (the same "
            "pair with SVI 2.0 Pro's LoRAs): motion and the take's first frame; a cut starts from one keyframe.",
        ),
        *size_inputs(832, 480, "Pixels. More: finer, slower, more memory."),
        fps_input(
            "Frames a second the model was trained at (16 for Wan 14B, 24 for Wan 2.2 5B). More: each second costs "
            "more frames."
        ),
        io.String.Input(
            "negative", multiline=True, default="", tooltip="What should not be seen; counts where cfg is above 1."
        ),
        io.Int.Input("steps", default=30, min=1, max=1000, tooltip="Denoising calls. More: slower and cleaner."),
        io.Float.Input(
            "cfg",
            default=5.0,
            min=1.0,
            max=30.0,
            step=0.1,
            tooltip="Guidance by the prompt. More: closer to it and harsher; 1 is none and twice as fast.",
        ),
        sampler_input("As in core's KSampler."),
        scheduler_input("As in core's KSampler."),
        io.Int.Input(
            "keyframes",
            default=3,
            min=0,
            max=10,
            tooltip="Keyframes that a shot is shown. More: more is remembered, slower, and more is copied. 0: none.",
        ),
        io.Int.Input(
            "per_character",
            default=0,
            min=0,
            max=8,
            advanced=True,
            tooltip="Keyframes at most that show the same named character. Fewer: room for the others. 0: no limit.",
        ),
        io.Int.Input(
            "new_keyframes",
            default=3,
            min=1,
            max=16,
            advanced=True,
            tooltip="Keyframes kept of each shot, at most. More: more views to choose from, a larger reel.",
        ),
        io.Float.Input(
            "shot_noise",
            default=0.1,
            tooltip="filmweaver: noise on keyframes. More: pose and layout are copied less, identity holds less.",
            **part,
        ),
        io.Float.Input(
            "history_noise",
            default=0.0,
            tooltip="filmweaver: noise on the frames before. More: mistakes build up less, motion is less smooth.",
            **part,
        ),
        io.Float.Input(
            "history_strength",
            default=1.0,
            tooltip="filmweaver: how much the frames before count. Less: motion, camera and prompt are freer. 0: not.",
            **part,
        ),
        io.Float.Input(
            "reference_cfg",
            default=5.0,
            min=1.0,
            max=30.0,
            step=0.1,
            advanced=True,
            tooltip="filmweaver, phantom: guidance by the keyframes. More: characters look more like them and "
            "move less. 1: none; about 3 for filmweaver, 5 for phantom.",
        ),
        boundary_input(
            0.875, "Noise level below which the low-noise model goes on. Less: its share is smaller.", 0.0, 1.0, 0.05
        ),
    ]
