"""Files that are no weights, whichever loader is given them: one sentence that says what they are, and no network."""

from __future__ import annotations

import json
import os
import socket
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from longreel.film.weights_file import MAX_HEADER_BYTES
from longreel.host.adapters.lora_file import read_lora
from longreel.host.adapters.motion import read_adapter
from longreel.host.files.checkpoints import CheckpointError, StoredTensor, _check_model
from longreel.host.files.safetensors_io import open_tensors
from longreel.host.media.embedder import EmbedderError, load_embedder
from longreel.host.miniature_clip import load_miniature_clip
from longreel.host.svd.adapters import load_adapter

from ... import tiny_models


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a loader asked the network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


LOADERS: dict[str, Callable[[Path], object]] = {
    "checkpoint": lambda path: open_tensors(path, ()),
    "lora": read_lora,
    "motion adapter": read_adapter,
    "aid adapter": load_adapter,
    "open_clip": lambda path: load_embedder(path),
    "miniature text": lambda path: load_miniature_clip(str(path)),
}


def lfs_pointer(path: Path) -> str:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2838276288\n")
    return "pointer of Git LFS"


def web_page(path: Path) -> str:
    path.write_text("\ufeff\n<!DOCTYPE html><html><body>Log in</body></html>", encoding="utf-8")
    return "web page"


def hub_answer(path: Path) -> str:
    path.write_text("Entry not found")
    return "web page"


def empty(path: Path) -> str:
    path.touch()
    return "is empty"


def cut_header(path: Path) -> str:
    path.write_bytes((9000).to_bytes(8, "little") + b'{"a":')
    return "cut off" if path.suffix == ".safetensors" else ""  # a pickle's own beginning is anything


def giant_header(path: Path) -> str:
    path.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{")
    return "which no file of weights has"


def compressed(path: Path) -> str:
    torch.save({"generator": {"a": torch.zeros(4000)}}, path.with_suffix(".plain"))
    with zipfile.ZipFile(path.with_suffix(".plain")) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry))
    return "is compressed"


def cut_archive(path: Path) -> str:
    torch.save({"a": torch.zeros(4000)}, path)
    path.write_bytes(path.read_bytes()[:9000])
    return "damaged or cut off"


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return ""


STRANGE = {
    ".safetensors": (lfs_pointer, web_page, hub_answer, empty, cut_header, giant_header, pipe),
    ".pt": (lfs_pointer, web_page, empty, compressed, cut_archive, pipe),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("suffix", STRANGE)
def test_what_is_no_weights_is_said(tmp_path: Path, loader: str, suffix: str):
    for make in STRANGE[suffix]:
        path = tmp_path / f"{make.__name__}{suffix}"
        message = make(path)
        with pytest.raises(ValueError, match=message or ".") as refused:
            LOADERS[loader](path)
        text = str(refused.value)
        assert text.endswith("."), text
        assert "\n" not in text


def stored_wan() -> dict[str, StoredTensor]:
    unread = partial(pytest.fail, "nothing is read")
    return {name: StoredTensor(tuple(value.shape), unread) for name, value in tiny_models.wan_weights(1).items()}


def test_scaled_fp8_weights_say_what_to_load():
    stored = stored_wan()
    scaled = stored | {"blocks.0.ffn.0.scale_weight": StoredTensor((), lambda: torch.ones(()))}
    with pytest.raises(CheckpointError, match=r"scaled fp8 .* Load Diffusion Model"):
        _check_model(scaled, 32, "x.safetensors")


def test_stray_blocks_make_no_giant():
    stored = stored_wan()
    stray = {f"blocks.{number}.x": StoredTensor((1,), lambda: torch.zeros(1)) for number in range(200_000)}
    with pytest.raises(CheckpointError, match="foreign blocks"):
        _check_model(stored | stray, 32, "x.safetensors")


def described(folder: Path, **changes: object) -> Path:
    """A CLIP whose description is a stranger's. changes: fields of model_cfg, or of its parts."""
    path = tiny_models.write_clip(folder)
    file = folder / "open_clip_config.json"
    description = json.loads(file.read_text())
    for name, value in changes.items():
        part, _, field = name.partition("__")
        if field:
            description["model_cfg"][part][field] = value
        else:
            description["model_cfg"][name] = value
    file.write_text(json.dumps(description))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_cfg__timm_model_name": "hf-hub:someone/vit"}, "would have to be downloaded"),
        (
            {"vision_cfg__timm_model_name": "vit_tiny_patch16_224", "vision_cfg__timm_model_pretrained": True},
            "downloaded",
        ),
        ({"text_cfg__hf_model_name": "roberta-base"}, "'roberta-base', which would have to be downloaded"),
        ({"text_cfg__hf_tokenizer_name": "roberta-base"}, "would have to be downloaded"),
        ({"vision_cfg__width": 10**9}, "vision_cfg.width"),
        ({"vision_cfg": None}, "vision_cfg must be an object"),
        ({"text_cfg": []}, "text_cfg must be an object"),
        ({"vision_cfg__layers": "many"}, "does not hold the weights"),
        ({"embed_dim": 17}, "does not hold the weights"),
    ],
)
def test_a_strangers_clip_asks_for_nothing(tmp_path: Path, changes: dict[str, object], message: str):
    with pytest.raises(EmbedderError, match=message):
        load_embedder(described(tmp_path / "clip", **changes))


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"model_cfg": 5}', '{"model_cfg": {}}', "[" * 100_000])
def test_a_strangers_description_is_decoded(tmp_path: Path, text: str):
    path = described(tmp_path / "clip")
    path.with_name("open_clip_config.json").write_text(text)
    with pytest.raises(EmbedderError, match="does not describe a CLIP"):
        load_embedder(path)


def test_an_architecture_is_a_name_and_no_address(tmp_path: Path):
    path = tiny_models.write_clip(tmp_path / "clip")
    path.with_name("open_clip_config.json").unlink()
    for address in ("hf-hub:someone/clip", "local-dir:/etc"):
        with pytest.raises(EmbedderError, match="would be downloaded"):
            load_embedder(path, address)


def test_our_own_files_load_without_a_network(tmp_path: Path):
    load_embedder(tiny_models.write_clip(tmp_path / "clip"))
    tiny_models.write(tmp_path / "models")
    for name in (tiny_models.LORA, tiny_models.MOTION):
        assert read_lora(tmp_path / "models" / "loras" / name)[0]
    assert open_tensors(tmp_path / "models" / "diffusion_models" / tiny_models.DIT, ())
