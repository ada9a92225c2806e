"""Nodes of other packs on the models of engines that denoise with ComfyUI's samplers: docs/other-nodes.md."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import torch
from longreel.engines.dual_cache import CacheGuidedEngine
from longreel.engines.dual_cache_backends import make_backend
from longreel.engines.engine import EngineBase
from longreel.engines.first_frame import FirstFrameEngine
from longreel.film.dual_cache import FILMWEAVER
from longreel.film.first_frame import Reference
from longreel.film.reel.reel import Reel
from longreel.film.storyboard.text import parse_shot
from longreel.host.media.embedder import load_embedder
from longreel.host.miniature_clip import load_miniature_clip
from longreel.host.progress import Progress
from longreel.host.sampling import SamplerSettings
from longreel.host.wan.cache_tokens import install
from safetensors.torch import save_file

from .. import tiny_models
from ..host.wan.test_other_nodes import NODES, said

SHOT = parse_shot("seconds: 0.3\nA red ball stands at the beach.")
# At guidance 1 a step is one evaluation. With two, ComfyUI batches them or not by what memory is free, and last bits
# differ.
NEAR = (
    "ModelComputeDtype",
    "Attention override (SageAttention)",
    "EasyCache",
    "LazyCache",
    "Normalized Attention Guidance",
    "Context Windows",
)


def film(engine: EngineBase) -> torch.Tensor:
    return engine.film(SHOT, Reel.empty(engine.layout()), Progress(10**6), engine.shot_inputs(SHOT)).latents(0)


def cache_guided(clip: Any, vae: Any, folder: Path) -> CacheGuidedEngine:
    weights, metadata = tiny_models.wan_weights(1), tiny_models.dit_metadata(causal=False)
    model = install(comfy.sd.load_diffusion_model_state_dict(weights, metadata=metadata), FILMWEAVER)
    return CacheGuidedEngine(
        models=(model,),
        clip=clip,
        vae=vae,
        embedder=load_embedder(tiny_models.write_clip(folder / "clip")),
        backend=make_backend("filmweaver", model),
        width=32,
        height=32,
        fps=16.0,
        sampling=SamplerSettings(steps=4, cfg=1.0, sampler="euler"),
    )


def first_frame(clip: Any, vae: Any, _folder: Path) -> FirstFrameEngine:
    metadata = tiny_models.dit_metadata(causal=False)
    models = (comfy.sd.load_diffusion_model_state_dict(tiny_models.dit_weights(), metadata=metadata),)
    picture = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(1))
    return FirstFrameEngine(
        models=models,
        clip=clip,
        vae=vae,
        width=32,
        height=32,
        fps=16.0,
        step_count=4,
        cfg=1.0,
        sampler="euler",
        scheduler="simple",
        negative="A blue star.",
        trigger="",
        cast=(Reference.from_image(picture, name="ball"),),
        plate=picture,
        transition="fixed",
    )


@pytest.fixture(scope="module")
def filmed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Any]:
    """The table's column, and an engine."""
    folder = tmp_path_factory.mktemp("models")
    save_file(tiny_models.text_weights(), folder / tiny_models.TEXT)
    clip = load_miniature_clip(str(folder / tiny_models.TEXT))
    make = (cache_guided, first_frame)[request.param - 2]
    return request.param, make(clip, comfy.sd.VAE(sd=tiny_models.vae_weights()), folder)


@pytest.mark.parametrize("filmed", [2, 3], ids=["cache-guided", "first-frame"], indirect=True)
def test_a_film_with_them_is_what_the_table_says_and_the_next_is_plain(filmed: tuple[int, EngineBase]):
    column, engine = filmed
    plain = film(engine)
    for name in NEAR:
        changed = replace(engine, models=tuple(NODES[name](model) for model in engine.models))
        if said(column)[name] == "refused":
            with pytest.raises(ValueError, match=rf"(?i){name} .*remove"):
                changed.check()
        else:
            changed.check()
            latents = film(changed)
            assert torch.isfinite(latents).all(), name
            assert "Cache" in name or not torch.equal(latents, plain), name
        again = film(engine)
        assert torch.equal(again, plain), f"{name}: {(again - plain).abs().max()}"
