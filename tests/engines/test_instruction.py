"""The instruction engine without a server: what each backend is told, chunks that go on, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import comfy.sd
import pytest
import torch
from comfy.ldm.modules.temporal_ae import VideoDecoder
from comfy.model_patcher import ModelPatcher
from longreel.engines import instruction_backends
from longreel.engines.causal_schedule import default_sigmas
from longreel.engines.dual_cache import CacheGuidedEngine
from longreel.engines.dual_cache_backends import Bernini
from longreel.engines.engine import EngineError
from longreel.engines.filming import film_shot, prepare
from longreel.engines.instruction import InstructionEngine, Planning, timed_prompts
from longreel.engines.instruction_backends import AdapterChunks, CausalInstructionEngine, FirstFrameChunks
from longreel.film.instruction import InstructionError, parse_states
from longreel.film.instruction.adapters import AidAdapter
from longreel.film.instruction.settings import AdapterSettings
from longreel.film.kv_memory import MEMFLOW
from longreel.film.reel.groups import StatesGroup
from longreel.film.reel.project import ProjectStore
from longreel.film.reel.reel import Reel, load_reel, save_reel
from longreel.film.storyboard.text import parse_shot, parse_storyboard
from longreel.host.media.decode import film_frames
from longreel.host.media.embedder import load_embedder
from longreel.host.media.plan_states import StatePlanner
from longreel.host.miniature_clip import load_miniature_clip
from longreel.host.progress import Progress
from longreel.host.sampling import SamplerSettings
from longreel.host.svd.adapters import AdapterFile, sites_of
from longreel.host.svd.model import SvdSize, make_svd
from safetensors.torch import save_file

from .. import tiny_models
from ..host.svd.conftest import random_weights

SIDE = 64
ASK = "A red ball jumps."
STATES = parse_states("A red ball stands.\nA red ball jumps.\nA red ball spins.", ASK, 3)


def picture(seed: int = 1) -> torch.Tensor:
    return torch.rand(1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(seed))


def wan(in_dim: int = 16) -> ModelPatcher:
    weights = tiny_models.dit_weights(1, in_dim)
    loaded: ModelPatcher = comfy.sd.load_diffusion_model_state_dict(weights, metadata=tiny_models.dit_metadata())
    return loaded


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    text = tmp_path_factory.mktemp("text") / tiny_models.TEXT
    save_file(tiny_models.text_weights(), text)
    vae = comfy.sd.VAE(sd=tiny_models.vae_weights())
    return {"clip": load_miniature_clip(str(text)), "vae": vae, "width": SIDE, "height": SIDE, "fps": 16.0}


@pytest.fixture
def causal(models) -> CausalInstructionEngine:
    model = wan()
    return CausalInstructionEngine(
        models=(model,), **models, sigmas=default_sigmas(model, 2), memory=MEMFLOW, planning=Planning(states=STATES)
    )


@pytest.fixture
def chunks(models) -> InstructionEngine:
    backend = FirstFrameChunks(9, 2, 1.0, "euler", "simple", "")
    return InstructionEngine(models=(wan(),), **models, backend=backend, planning=Planning(states=STATES, count=2))


def film(engine, text: str, first: torch.Tensor | None = None) -> Reel:
    reel = Reel.empty(engine.layout())
    for number, shot in enumerate(parse_storyboard(text).shots):
        given = first if number == 0 else None
        reel = engine.film(shot, reel, Progress(1), engine.shot_inputs(shot, given))
    return reel


class Writer:
    """A language model that answers with the number of the question."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, torch.Tensor]] = []
        self.tokenizer = self
        self.patcher = None

    def tokenize_with_weights(self, text, image=None, **_):
        return text, image

    tokenize = tokenize_with_weights

    def generate(self, tokens, **_):
        self.asked.append(tokens)
        return json.dumps([f"A red ball jumps {word}." for word in ("first", f"part {len(self.asked)}")])

    def decode(self, words):
        return words


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """Every prompt that is encoded, in order; the tiny text encoder knows few words."""
    seen: list[str] = []
    for kind in (InstructionEngine, CausalInstructionEngine):

        def encode(engine, text: str):
            seen.append(text)
            return [[torch.zeros(1, 4, tiny_models.TEXT_WIDTH), {}]]

        monkeypatch.setattr(kind, "encode_prompt", encode)
    return seen


# Causal


def test_a_causal_model_films_states_as_a_schedule_of_prompts_and_the_reel_keeps_what_was_asked(causal, told):
    reel = film(causal, f"seconds: 3\n{ASK}")
    assert told == [f"{ASK} A red ball stands.", ASK, f"{ASK} A red ball spins."]
    assert reel.last_shot.shot.prompts[0].text == ASK
    assert StatesGroup.of(reel.last_shot).chunks == [list(STATES.texts)]
    assert reel.last_shot.settings["engine"] == "causal instruction"


def test_without_states_a_causal_instruction_films_what_the_causal_engine_does(causal):
    from longreel.engines.causal import CausalEngine

    bare = replace(causal, planning=Planning())
    plain = CausalEngine(**{name: getattr(causal, name) for name in (
        "models", "clip", "vae", "width", "height", "fps", "sigmas", "memory")})  # fmt: skip
    assert torch.equal(film(bare, f"seconds: 1\n{ASK}").latents(0), film(plain, f"seconds: 1\n{ASK}").latents(0))


def test_timed_prompts_are_states_that_a_person_wrote(causal, told):
    film(causal, f"seconds: 3\n{ASK}\n[1.5s] A red ball spins.")
    assert told == [ASK, "A red ball spins."]


def test_a_filmed_shot_is_found_again_in_its_project(causal, tmp_path):
    shot = parse_shot(f"seconds: 1\n{ASK}")
    store = ProjectStore(tmp_path / "project")
    place = prepare(causal, [shot], None, store).jobs[0].place
    first = film_shot(causal, shot, None, store, place)
    assert prepare(causal, [shot], None, store).jobs[0].decision.action == "reused"
    assert torch.equal(film_shot(causal, shot, None, store, place).latents(0), first.latents(0))
    other = replace(causal, planning=Planning(states=parse_states("a b c\nd e f", ASK, 2, strict=False)))
    assert prepare(other, [shot], None, store).jobs[0].decision.action == "filmed"


def test_states_are_where_they_change(causal):
    shot = parse_shot(f"seconds: 4\n{ASK}")
    assert timed_prompts(STATES, shot, iter("abc")) == [(0.0, "a"), (1.0, "b"), (3.0, "c")]
    assert timed_prompts(STATES, shot, iter("aab")) == [(0.0, "a"), (3.0, "b")]


# Image to video, in chunks


def test_chunks_go_on_from_the_last_frame_each_with_the_prompt_of_its_states(chunks, told, monkeypatch):
    begun: list[torch.Tensor] = []
    original = instruction_backends.start_from

    def start(kind, frame, *rest):
        begun.append(frame)
        return original(kind, frame, *rest)

    monkeypatch.setattr(instruction_backends, "start_from", start)
    reel = film(chunks, f"seconds: 1\n{ASK}", picture())
    # 16 frames are 5 latents; chunks of 3 bring 3 and then 2 new ones.
    assert reel.last_shot.latent_frames == 5
    assert told[::2] == [f"{ASK} A red ball stands.", f"{ASK} A red ball spins."]
    assert torch.allclose(begun[0], picture(), atol=1e-5)
    shown = torch.cat(list(film_frames(reel, chunks.vae)))
    assert shown.shape == (16, SIDE, SIDE, 3)
    torch.testing.assert_close(begun[1][0], shown[8], atol=0.05, rtol=0)
    assert [len(chunk) for chunk in StatesGroup.of(reel.last_shot).chunks] == [2, 2]


def test_a_shot_that_continues_begins_with_the_last_frame_of_the_reel(chunks, told):
    reel = film(chunks, f"seconds: 0.5\n{ASK}\n---\nseconds: 0.5, start: continue\n{ASK}", picture())
    assert [shot.latent_frames for shot in reel.shots] == [3, 2]
    assert sum(frames.shape[0] for frames in film_frames(reel, chunks.vae)) == 16


def test_the_plan_is_made_anew_from_the_frame_that_was_reached(chunks, told):
    writer = Writer()
    planner = StatePlanner(writer, 2, fingerprint="replan")
    film(replace(chunks, planning=Planning(planner, count=2, replan=True)), f"seconds: 1.5\n{ASK}", picture())
    assert ["number 2 of 3" in writer.asked[1][0], "number 3 of 3" in writer.asked[2][0]] == [True, True]
    assert '"A red ball jumps first".' in writer.asked[1][0], "how the part before should have ended"
    assert not torch.equal(writer.asked[1][1], writer.asked[0][1])
    assert told[-2] == f"{ASK} A red ball jumps first. A red ball jumps part 3."


def test_image_to_video_models_with_extra_channels_film_too(models, told):
    backend = FirstFrameChunks(9, 2, 1.0, "euler", "simple", "")
    engine = InstructionEngine(models=(wan(36),), **models, backend=backend)
    engine.check()
    assert film(engine, f"seconds: 0.5\n{ASK}", picture()).last_shot.latent_frames == 3


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        (f"seconds: 1\n{ASK}", None, "nothing to begin with"),
        (f"seconds: 1, references: a.png\n{ASK}", picture(), "starts from one picture"),
        (f"seconds: 1, start: continue\n{ASK}", picture(), "set its start to cut"),
    ],
)
def test_shots_that_cannot_be_filmed_are_refused_before(chunks, text: str, given, message: str):
    with pytest.raises(EngineError, match=message):
        chunks.shot_inputs(parse_shot(text), given)


# Stable Video Diffusion


class SmallDecoder(VideoDecoder):
    def __init__(self) -> None:
        torch.nn.Module.__init__(self)


class SvdVae:
    """Encodes by averaging and decodes by repeating, 8 pixels to a side."""

    latent_channels, latent_dim, vae_dtype = 4, 2, torch.float32

    def __init__(self) -> None:
        self.first_stage_model = torch.nn.Module()
        self.first_stage_model.decoder = SmallDecoder()
        self.patcher = ModelPatcher(self.first_stage_model, torch.device("cpu"), torch.device("cpu"))

    def spacial_compression_encode(self) -> int:
        return 8

    def model_size(self) -> int:
        return 10**9

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return torch.cat([small, small.mean(1, keepdim=True)], dim=1) * 2 - 1

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        big = torch.nn.functional.interpolate((latents[:, :3] + 1) / 2, scale_factor=8.0)
        return big.movedim(1, -1).clamp(0, 1)


class Vision:
    def __init__(self) -> None:
        self.patcher = ModelPatcher(torch.nn.Module(), torch.device("cpu"), torch.device("cpu"))

    def encode_image(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        mean = image.mean((1, 2))
        return {"image_embeds": mean.repeat(1, 8), "penultimate_hidden_states": mean.repeat(1, 7)[:, None, :20]}


@pytest.fixture
def svd(models, monkeypatch) -> InstructionEngine:
    model = make_svd(SvdSize(32, (1, 2), (True, True), 1, 16, 24))
    unet = model.model.diffusion_model
    unet.load_state_dict(random_weights(unet))
    settings = AdapterSettings(
        sites=sites_of(unet), num_frames=6, context_dim=24, text_dim=tiny_models.TEXT_WIDTH, vision_dim=20,
        tokens_per_frame=5, num_states=2, dq_heads=4, ff_mult=2, lt_head_width=8, k_max=2, width=SIDE, height=SIDE,
    )  # fmt: skip
    adapter = AidAdapter(settings, torch.nn)
    adapter.initialise(torch.Generator().manual_seed(2))
    adapter.load_state_dict(random_weights(adapter, 2))
    file = AdapterFile.of(adapter.eval().requires_grad_(False))
    monkeypatch.setattr(
        "longreel.host.svd.conditioning.encode_text", lambda clip, text, cut=True: torch.ones(1, 5, 128) * len(text)
    )
    backend = AdapterChunks(file, Vision(), step_count=2)
    planning = Planning(states=parse_states("A ball stands.\nA ball jumps.", ASK, 2), count=2)
    return InstructionEngine(**{**models, "vae": SvdVae(), "fps": 7.0}, models=(model,), backend=backend,
                             planning=planning)  # fmt: skip


def test_svd_films_chunks_of_frames_and_its_reel_says_whose_latents_they_are(svd):
    svd.check()
    reel = film(svd, f"seconds: 2\n{ASK}", picture())
    assert reel.last_shot.latent_frames == 14, "a frame to a latent: 6, then 5 and 3 new ones"
    assert reel.last_shot.family == "svd"
    assert len(StatesGroup.of(reel.last_shot).chunks) == 3
    assert torch.cat(list(film_frames(reel, svd.vae))).shape == (14, SIDE, SIDE, 3)


def test_64_frames_are_chunks_each_planned_from_the_frame_that_was_reached(svd):
    writer = Writer()
    planning = Planning(StatePlanner(writer, 2, fingerprint="64 frames"), count=2, replan=True)
    reel = film(replace(svd, planning=planning, fps=16.0), f"seconds: 4\n{ASK}", picture())
    assert reel.last_shot.latent_frames == 64
    chunks = StatesGroup.of(reel.last_shot).chunks
    assert len(chunks) == 13, "6 frames, then 5 new ones each"
    assert len(writer.asked) == 13
    assert len({text for _, text in chunks}) == 13
    shown = [asked[1] for asked in writer.asked]
    assert not any(torch.equal(one, other) for one, other in pairwise(shown))
    assert torch.cat(list(film_frames(reel, svd.vae))).shape == (64, SIDE, SIDE, 3)


def test_hard_kept_frames_join_chunks_without_a_seam(svd):
    engine = replace(svd, backend=replace(svd.backend, keep_known=True, known=2, later_augmentation=0.0))
    seen = []
    original = instruction_backends.condition

    def condition(adapter, clip, vision, vae, frames, *rest, **named):
        seen.append(frames)
        return original(adapter, clip, vision, vae, frames, *rest, **named)

    instruction_backends.condition, kept = condition, instruction_backends.condition
    try:
        reel = film(engine, f"seconds: 1.4\n{ASK}", picture())
    finally:
        instruction_backends.condition = kept
    assert [len(frames) for frames in seen] == [1, 2]
    frames = torch.cat(list(film_frames(reel, svd.vae)))
    torch.testing.assert_close(frames[0], svd.vae.decode(svd.vae.encode(picture()))[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[1], frames[4:6], atol=1e-4, rtol=0)


def test_a_story_that_changes_family_is_one_reel(causal, svd, tmp_path):
    """A shot by the causal engine, one by SVD, one cache-guided; saved, loaded, decoded into one film."""
    causal = replace(causal, fps=7.0)
    embedder = load_embedder(tiny_models.write_clip(tmp_path / "clip"))
    film_of = {name: getattr(causal, name) for name in ("clip", "vae", "width", "height", "fps")}
    plain = comfy.sd.load_diffusion_model_state_dict(
        tiny_models.wan_weights(1), metadata=tiny_models.dit_metadata(causal=False)
    )
    guided = CacheGuidedEngine(
        models=(plain,), **film_of, embedder=embedder, backend=Bernini(),
        sampling=SamplerSettings(steps=1, cfg=1.0, sampler="euler"),
    )  # fmt: skip
    shot = parse_shot(f"seconds: 1\n{ASK}")
    reel = film(causal, f"seconds: 1\n{ASK}").joined(svd.layout())
    reel = svd.film(shot, reel, Progress(1), svd.shot_inputs(shot, picture()))
    reel = reel.joined(guided.layout())
    reel = guided.film(shot, reel, Progress(1), guided.shot_inputs(shot))
    save_reel(reel, tmp_path / "story.safetensors")
    loaded = load_reel(tmp_path / "story.safetensors")
    assert [filmed.family for filmed in loaded.shots] == ["wan", "svd", "wan"]
    assert [filmed.settings["engine"] for filmed in loaded.shots] == [causal.name, svd.name, guided.name]
    frames = torch.cat(list(film_frames(loaded, [causal.vae, svd.vae])))
    assert frames.shape == (21, SIDE, SIDE, 3)


def test_svd_refuses_what_does_not_fit(svd, chunks):
    with pytest.raises(InstructionError, match="is not Stable Video Diffusion"):
        svd.backend.check(chunks)
    with pytest.raises(EngineError, match="at most 2 known frames"):
        replace(svd.backend, known=3).check(svd)
    with pytest.raises(EngineError, match="no vision encoder"):
        replace(svd.backend, clip_vision=None).check(svd)
