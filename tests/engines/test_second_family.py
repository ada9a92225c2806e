"""A family of another latent space, added from outside, films, previews, decodes, extends and forks as any other.

Its VAE has one frame to each latent frame, 16 channels (so that a tiny Wan can denoise them) and 4 pixels to a side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
from comfy.model_patcher import CoreModelPatcher, ModelPatcher
from longreel.engines.dual_cache import CacheGuidedEngine
from longreel.engines.dual_cache_backends import make_backend
from longreel.engines.engine import Capabilities, EngineBase, EngineError, ShotInputs
from longreel.engines.filming import film_shot, prepare
from longreel.film.reel.latent_space import LatentSpace
from longreel.film.reel.reel import Reel, ReelError, check_layout, load_reel, save_reel
from longreel.film.reel.takes import ShotPlan, plan_shot, takes
from longreel.film.storyboard.shot import Shot
from longreel.film.storyboard.text import parse_storyboard
from longreel.host import families
from longreel.host.families import UnsupportedVaeError, of, of_vae
from longreel.host.families.family import fit
from longreel.host.guidance import Cfg
from longreel.host.media.decode import film_frames, take_picture
from longreel.host.media.embedder import load_embedder
from longreel.host.miniature_clip import load_miniature_clip
from longreel.host.progress import Progress
from longreel.host.sampling import Inputs, SamplerSettings, sample, schedule, stages_by_boundary
from longreel.nodes import edit, film, video
from PIL import Image
from safetensors.torch import save_file

from .. import tiny_models

WIDTH, HEIGHT, FPS = 32, 48, 8.0


class Tiles(torch.nn.Module):
    """A VAE that averages tiles of 4 x 4 pixels, and mixes their colours into 16 channels."""

    def __init__(self) -> None:
        super().__init__()
        mixing = torch.linalg.qr(torch.randn(16, 3, generator=torch.Generator().manual_seed(8)))[0]
        self.mixing = torch.nn.Parameter(mixing, requires_grad=False)

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        tiles = torch.nn.functional.avg_pool2d(frames.movedim(-1, 1), 4)
        return torch.einsum("cr,nrhw->cnhw", self.mixing, tiles * 2 - 1)[None]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        colours = torch.einsum("cr,cnhw->nhwr", self.mixing, latents[0]).clamp(-1, 1) / 2 + 0.5
        return colours.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)


class TilesVae:
    """What a VAE loader would give."""

    vae_dtype = torch.float32

    def __init__(self) -> None:
        self.first_stage_model = Tiles()
        cpu = torch.device("cpu")
        self.patcher = CoreModelPatcher(self.first_stage_model, cpu, cpu)

    def model_size(self) -> int:
        return 192


class TilesDecoder:
    def __init__(self, network: Tiles) -> None:
        self.network = network

    def decode(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        for latent in latents.split(2, dim=2):
            comfy.model_management.throw_exception_if_processing_interrupted()
            yield self.network.decode(latent)


@dataclass(frozen=True, eq=False)
class TilesFamily:
    vae: Any
    latents = LatentSpace("tiles", 16, 4, 1)

    def decoder(self) -> TilesDecoder:
        return TilesDecoder(self.vae.first_stage_model)

    def chunks(self, latent_frames: int) -> int:
        return -(-latent_frames // 2)

    def encode(self, frames: torch.Tensor, width: int, height: int) -> torch.Tensor:
        return self.vae.first_stage_model.encode(fit(frames, width, height))

    def check(self, model: ModelPatcher) -> None:
        """Any will do."""

    def cell(self, model: ModelPatcher) -> int:
        return 8

    def text_width(self, model: ModelPatcher) -> int:
        return tiny_models.TEXT_WIDTH


def family_of(vae: Any) -> TilesFamily | None:
    return TilesFamily(vae) if isinstance(vae.first_stage_model, Tiles) else None


@pytest.fixture(autouse=True)
def _family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", [*families.FAMILIES, family_of])


@dataclass(frozen=True, eq=False)
class TilesEngine(EngineBase):
    """Denoises a shot at once; one that continues keeps the last latent frame of the take before it as its first."""

    name = "tiles"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(continues=True, references=0, prompts_per_shot=1, start_image=True)

    def steps(self, plan: ShotPlan) -> int:
        return 2

    def _settings(self) -> dict[str, Any]:
        return {}

    def shot_inputs(self, shot: Shot, given: torch.Tensor | None = None) -> ShotInputs:
        return ShotInputs(given)

    def film(self, shot: Shot, reel: Reel, report: Progress, inputs: ShotInputs) -> Reel:
        plan = plan_shot(reel.shots, shot, self.clock)
        given: torch.Tensor | None = None
        if inputs.picture is not None:
            given = self.encode_frames(inputs.picture)
        elif not plan.take_start:
            given = reel.shots[-1].latents(reel.shots[-1].latent_frames - 1)
        extra = 0 if given is None or plan.take_start else 1
        latent = torch.zeros(self.latent_shape(plan.latent_frames + extra))
        mask = torch.ones(1, 1, *latent.shape[2:])
        if given is not None:
            latent[:, :, :1], mask[:, :, :1] = given, 0.0
        prompt = self.encode_prompt(shot.prompts[0].text)
        made = sample(
            stages_by_boundary(self.models, "simple", 2, 0.9),
            Inputs({"positive": prompt, "negative": prompt}, latent, mask),
            [Cfg(1.0)],
            torch.randn(latent.shape, generator=torch.Generator().manual_seed(shot.seed)),
            sigmas=schedule(self.models[0], "simple", 2),
            sampler="euler",
            seed=shot.seed,
            on_step=report.step,
        )
        return self._filmed(reel, shot, plan, inputs, made[:, :, extra:])


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    save_file(tiny_models.text_weights(), folder / tiny_models.TEXT)
    model = comfy.sd.load_diffusion_model_state_dict(
        tiny_models.wan_weights(1), metadata=tiny_models.dit_metadata(causal=False)
    )
    clip = load_miniature_clip(str(folder / tiny_models.TEXT))
    embedder = load_embedder(tiny_models.write_clip(folder / "clip"))
    return {"model": model, "clip": clip, "embedder": embedder, "vae": comfy.sd.VAE(sd=tiny_models.vae_weights())}


@pytest.fixture
def engine(parts: dict[str, Any]) -> TilesEngine:
    return TilesEngine((parts["model"],), parts["clip"], TilesVae(), WIDTH, HEIGHT, FPS)


@pytest.fixture
def wan(parts: dict[str, Any]) -> CacheGuidedEngine:
    model = parts["model"]
    sampling = SamplerSettings(steps=1, cfg=1.0, sampler="euler")
    return CacheGuidedEngine(
        models=(model,), clip=parts["clip"], vae=parts["vae"], embedder=parts["embedder"],
        backend=make_backend("bernini", model), width=WIDTH, height=HEIGHT, fps=FPS, sampling=sampling,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nodes that run without a graph around them."""
    monkeypatch.setattr(film, "own_note", dict)
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    hidden = SimpleNamespace(prompt=None, extra_pnginfo=None)
    monkeypatch.setattr(video.LongreelReelToVideo, "hidden", hidden, raising=False)


def filmed_by(engine: Any, text: str, reel: Reel | None = None, picture: torch.Tensor | None = None) -> Reel:
    for shot in text.split("\n---\n"):
        reel = film.LongreelFilmShot.execute(engine, shot, "", reel, picture).args[0]
    assert reel is not None
    return reel


STORY = "seconds: 1\nA red ball.\n---\nseconds: 0.5, start: continue\nA red ball jumps.\n---\nseconds: 1\nA blue star."


def test_the_same_nodes_film_decode_extend_and_fork(engine: TilesEngine):
    engine.check_models()
    assert (engine.cell, engine.clock.compression, engine.latent_shape(5)) == (8, 1, (1, 16, 5, 12, 8))
    reel = filmed_by(engine, STORY)
    assert [shot.latent_frames for shot in reel.shots] == [shot.frames for shot in reel.shots] == [8, 4, 8]
    saved, images = video.LongreelReelToVideo.execute(reel, engine.vae, "film", "mp4", 1, 0, 0.0, 0, 20).args
    assert saved.get_dimensions() == (WIDTH, HEIGHT)
    decode = engine.vae.first_stage_model.decode
    assert torch.allclose(images, torch.cat([decode(shot.latents()) for shot in reel.shots]))
    longer = edit.LongreelExtendShot.execute(engine, reel, 2, "A red ball stands.", 0.5, 3, True).args[0]
    assert [shot.frames for shot in longer.shots] == [8, 4, 4, 8]
    assert len(takes(longer.shots)) == 2
    forked = edit.LongreelForkReel.execute(longer, 1, 0.5).args[0]
    assert torch.equal(forked.latents(0), longer.latents(0, 0, 4))
    clip = torch.rand(5, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(2))
    begun = edit.LongreelStartFromVideo.execute(engine, clip, 0, "A clip.", forked).args[0]
    assert begun.shots[-1].frames == begun.shots[-1].latent_frames == 5
    again = edit.LongreelRetakeShot.execute(engine, longer, 1, 9, True).args[0]
    assert not torch.equal(again.latents(0), longer.latents(0))
    assert torch.equal(again.latents(3), longer.latents(3))


def test_a_block_is_previewed_by_the_family(engine: TilesEngine):
    latents = engine.encode_frames(torch.ones(1, HEIGHT, WIDTH, 3) * torch.tensor([1.0, 0.0, 0.0]))
    shown = engine.previewer()(latents)
    assert isinstance(shown, Image.Image)
    assert shown.size == (WIDTH, HEIGHT)
    assert shown.getpixel((3, 3)) == (255, 0, 0)


def test_a_reel_holds_shots_of_both_families(engine: TilesEngine, wan: CacheGuidedEngine, tmp_path: Path):
    first = filmed_by(wan, "seconds: 1\nA red ball.")
    assert first.layout.to_json().keys().isdisjoint({"family", "others"}), "as files were before"
    last, _ = take_picture(first, wan.vae, takes(first.shots)[0], first.frames - 1)
    both = filmed_by(engine, "seconds: 1\nA red ball jumps.", first, last)
    assert torch.allclose(both.latents(1, 0, 1), engine.encode_frames(last), atol=1e-4)
    both = filmed_by(wan, "seconds: 1\nA blue star.", filmed_by(engine, "seconds: 0.5, start: continue\nA ball.", both))
    assert [shot.family for shot in both.shots] == ["wan", "tiles", "tiles", "wan"]
    assert [both.latent_space(i).temporal for i in range(4)] == [4, 1, 1, 4]
    save_reel(both, tmp_path / "both.safetensors")
    loaded = load_reel(tmp_path / "both.safetensors")
    assert loaded.layout == both.layout
    frames = torch.cat([piece.float() for piece in film_frames(loaded, [engine.vae, wan.vae])])
    assert len(frames) == loaded.frames == 28
    assert torch.equal(frames[8:16], engine.vae.first_stage_model.decode(both.latents(1)))
    assert torch.allclose(frames[:8], torch.cat(list(film_frames(first, wan.vae))).float())
    shown = video.LongreelReelToVideo.execute(loaded, wan.vae, "film", "mp4", 1, 0, 0.0, 0, 28, engine.vae).args[1]
    assert torch.equal(shown, frames)
    with pytest.raises(ReelError, match="Shot 2 was filmed by a model of the family tiles: connect its VAE"):
        list(film_frames(loaded, wan.vae))
    other = TilesVae()
    other.first_stage_model.mixing.data *= 0.5
    with pytest.raises(ReelError, match="another VAE"):
        check_layout(loaded, replace(engine, vae=other).layout())


def test_between_families_go_pictures_alone(engine: TilesEngine, wan: CacheGuidedEngine):
    reel = filmed_by(wan, "seconds: 1\nA red ball.")
    with pytest.raises(EngineError, match="Shot 2: The shot before was filmed by a model of another family"):
        filmed_by(engine, "seconds: 1, start: continue\nA red ball.", reel)
    shots = parse_storyboard("seconds: 1\nA red ball.\n---\nstart: continue, seconds: 1\nA red ball.").shots
    for job in prepare(engine, shots, reel, None).jobs:
        reel = film_shot(engine, job.shot, reel, None, job.place)
    assert len(reel.shots) == 3


def test_a_vae_of_no_family_is_refused(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    assert of(parts["model"], TilesVae()).latents.family == "tiles"
    assert of_vae(parts["vae"]).latents == LatentSpace("wan", 16, 8, 4)
    monkeypatch.setattr(families, "FAMILIES", families.FAMILIES[:-1])
    with pytest.raises(UnsupportedVaeError, match="this one is a Tiles"):
        of_vae(TilesVae())
