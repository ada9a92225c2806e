"""Progress reaches the node that is on the canvas, and is silent without a server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import comfy.latent_formats
import comfy.model_management
import comfy.sd
import comfy.utils
import latent_preview
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.ldm.wan.vae import WanVAE
from comfy_execution.graph import DynamicPrompt
from comfy_execution.progress import get_progress_state, reset_progress_state
from comfy_execution.utils import CurrentNodeContext
from longreel.host import progress
from longreel.host.progress import Progress, film_previewer


class _Server:
    """What a client would see."""

    client_id = "client"

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []
        self.bars: list[tuple[float, float, str]] = []
        self.pictures: list = []

    def send_progress_text(self, text: str, node_id: str, sid: str) -> None:
        assert sid == "client"
        self.texts.append((text, node_id))

    def hook(self, value: float, total: float, preview: tuple | None, node_id: str) -> None:
        self.bars.append((value, total, node_id))
        if preview:
            assert preview[0] == "JPEG"
            assert preview[2] == latent_preview.MAX_PREVIEW_RESOLUTION
            self.pictures.append(preview[1])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    """A server in which node 7.0.1, made by expansion, is shown as node 7; every update is sent."""
    fake = _Server()
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=fake)))
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", fake.hook)
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0)
    monkeypatch.setattr(progress, "_SECONDS_PER_PREVIEW", 0)
    monkeypatch.setattr(progress, "_SECONDS_PER_TEXT", 0)
    prompt = DynamicPrompt({"7": {}})
    prompt.add_ephemeral_node("7.0.1", {}, "7", "7")
    reset_progress_state("prompt", prompt)
    with CurrentNodeContext("prompt", "7.0.1"):
        yield fake
    reset_progress_state("", DynamicPrompt({}))


def _latents(value: float = 0.0) -> torch.Tensor:
    return torch.full((1, 16, 3, 4, 6), value)


def _model() -> SimpleNamespace:
    latents = comfy.latent_formats.Wan21()
    return SimpleNamespace(
        load_device=torch.device("cpu"),
        model=SimpleNamespace(latent_format=latents, process_latent_in=latents.process_in),
    )


def test_one_bar_over_shots_and_chunks(server: _Server) -> None:
    report = Progress(20, done=5, previewer=film_previewer(_model()))
    report.start_shot(2, 5, blocks=2)
    for _ in range(2):
        for _ in range(4):
            report.step()
        report.block_done(_latents())
    report.start_decoding(5)
    report.chunk_done(1)
    report.chunk_done(4)
    report.skip(2)
    report.finish("done")
    assert [text for text, _ in server.texts] == [
        "shot 2/5",
        "shot 2/5, block 1/2",
        "shot 2/5, block 2/2",
        "frame 0/5",
        "frame 1/5",
        "frame 5/5",
        "done",
    ]
    assert {node for _, node in server.texts} == {"7"}
    assert [value for value, _, _ in server.bars] == [*range(6, 18), 19, 20]
    assert {(total, node) for _, total, node in server.bars} == {(20, "7.0.1")}
    assert [picture.size for picture in server.pictures] == [(6, 4), (6, 4)]


def test_fast_blocks_do_not_flood_the_server(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=1000.0)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "_SECONDS_PER_PREVIEW", 0.5)
    monkeypatch.setattr(progress, "_SECONDS_PER_TEXT", 0.1)
    report = Progress(100, previewer=film_previewer(_model()))
    report.start_shot(1, 1, blocks=100)
    for _ in range(100):
        clock.now += 0.02
        report.block_done(_latents())
    assert len(server.pictures) == 4
    assert 15 <= len(server.texts) <= 23
    assert server.texts[-1] == ("shot 1/1, block 100/100", "7")


def test_named_node(server: _Server) -> None:
    report = Progress(2, node_id="12:3")
    report.start_shot(1, 1, 1)
    report.block_done(_latents())
    assert server.texts[-1] == ("shot 1/1, block 1/1", "12:3")
    assert server.bars[-1] == (1, 2, "12:3")
    assert server.pictures == []


def test_silent_without_a_server(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "server", raising=False)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)

    def unused(_: torch.Tensor) -> None:
        raise AssertionError("nobody would see the picture")

    report = Progress(3, previewer=unused)
    report.start_shot(1, 1, 1)
    report.step()
    report.block_done(_latents())
    report.chunk_done(1)
    report.finish("done")
    assert report.done == 3
    assert capfd.readouterr() == ("", "")
    assert "server" not in sys.modules
    assert get_progress_state().nodes == {}


def test_interrupt_takes_effect_at_a_step() -> None:
    report = Progress(3)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        report.step()
    report.step()
    assert report.done == 1


def test_previews_follow_the_chosen_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's default is none; its factors are used then too, on normalised latents and on the newest frame."""
    latents = _latents()
    latents[:, :, -1] = torch.randn(16, 4, 6)
    shown = []
    for method in (LatentPreviewMethod.NoPreviews, LatentPreviewMethod.Auto):
        monkeypatch.setattr(args, "preview_method", method)
        shown.append(film_previewer(_model())(latents).tobytes())
    latents[:, :, :-1] = 9
    assert shown[0] == shown[1] == film_previewer(_model())(latents).tobytes()
    latents[:, :, -1] = 9
    assert shown[0] != film_previewer(_model())(latents).tobytes()


def test_a_tiny_vae_decodes_its_own_previews() -> None:
    shapes = WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True]).state_dict()
    vae = comfy.sd.VAE(sd={k: torch.randn(v.shape) * 0.1 for k, v in shapes.items()}, dtype=torch.float32)
    picture = film_previewer(_model(), vae)(torch.randn(1, 16, 3, 4, 6))
    assert picture.size == (48, 32)
