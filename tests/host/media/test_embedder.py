"""open_clip under ComfyUI's memory management, and the keyframes made with it."""

from __future__ import annotations

import sys
from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.sd
import open_clip
import pytest
import torch
from longreel.film.dual_cache import ChoicePolicy
from longreel.host.families import encode_image
from longreel.host.media.embedder import EmbedderError, load_embedder
from longreel.host.media.keyframes import decoded_frame, picture_keyframes, shot_keyframes
from PIL import Image

from ... import tiny_models


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_clip(tmp_path_factory.mktemp("open_clip") / "tiny")


@pytest.fixture(scope="module")
def embedder(clip_file: Path):
    return load_embedder(clip_file)


def pictures(count: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 48, 64, 3, generator=torch.Generator().manual_seed(seed))


def test_vectors_are_those_of_open_clip(embedder, clip_file: Path):
    source = f"local-dir:{clip_file.parent}"
    model, _, transform = open_clip.create_model_and_transforms(source)
    shown = pictures(3)
    plain = [Image.fromarray(picture.mul(255).round().byte().numpy()) for picture in shown]
    with torch.no_grad():
        wanted = model.eval().encode_image(torch.stack([transform(picture) for picture in plain]), normalize=True)
        said = model.encode_text(open_clip.get_tokenizer(source)(["A red ball.", "It jumps!"]), normalize=True)
    assert torch.allclose(embedder.images(shown), wanted, atol=1e-6)
    assert torch.allclose(embedder.text("A red ball. It jumps!"), said, atol=1e-6)


def test_what_stands_beyond_77_tokens_counts(embedder):
    """CLIP cuts a text off; sentence by sentence nothing of a long prompt is lost."""
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    opening = "The sun stands low over a wide beach of sand and stones, and nobody walks there now. " * 6
    whole = [tokenize([f"{opening}{end}"])[0] for end in ("A red ball jumps.", "A blue cube walks.")]
    assert torch.equal(*whole), "as one text both prompts are the same to CLIP"
    red, blue = (embedder.text(f"{opening}{end}") for end in ("A red ball jumps.", "A blue cube walks."))
    assert red.shape == (7, 16)
    assert torch.allclose(red[-1:], embedder.text("A red ball jumps."), atol=1e-6)
    assert torch.equal(red[:6], blue[:6])
    assert not torch.allclose(red[6], blue[6], atol=1e-3)


def test_comfyui_manages_its_memory(embedder):
    embedder.images(pictures(1))
    assert embedder.get_models() == [embedder.patcher]
    assert embedder.patcher in comfy.model_management.loaded_models()


def test_fingerprint_tells_weights_apart(embedder, clip_file: Path, tmp_path: Path):
    assert load_embedder(clip_file).fingerprint == embedder.fingerprint
    from safetensors.torch import load_file, save_file

    weights = {name: tensor * 2 for name, tensor in load_file(clip_file).items()}
    other = tiny_models.write_clip(tmp_path / "other")
    save_file(weights, other)
    assert load_embedder(other).fingerprint != embedder.fingerprint


def test_faults_are_told_in_one_sentence(clip_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    alone = tmp_path / "weights.safetensors"
    alone.write_bytes(clip_file.read_bytes())
    with pytest.raises(EmbedderError, match="does not hold the weights of ViT-B-32"):
        load_embedder(alone, "ViT-B-32")
    with pytest.raises(EmbedderError, match="knows no architecture 'ViT-X'"):
        load_embedder(alone, "ViT-X")
    with pytest.raises(EmbedderError, match="would have to be downloaded"):
        load_embedder(alone, "xlm-roberta-base-ViT-B-32")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(EmbedderError, match="pip install open_clip_torch"):
        load_embedder(alone)


@pytest.fixture(scope="module")
def vae():
    return comfy.sd.VAE(sd=tiny_models.vae_weights())


FORMAT = comfy.latent_formats.Wan21()


def test_pictures_become_keyframes(embedder, vae):
    shown = pictures(2)
    first, second = picture_keyframes(shown, [("Ada",), ()], vae, embedder, FORMAT, (32, 48), pinned=True)
    assert (first.characters, first.source, first.pinned) == (("Ada",), "user", True)
    wanted = FORMAT.process_in(encode_image(vae, shown[0], 32, 48))[0]
    assert torch.allclose(first.latent.float(), wanted, atol=2e-3)
    assert torch.allclose(second.embedding, embedder.images(shown[1:])[0], atol=1e-6)
    assert first.uid != second.uid


def test_a_shot_is_remembered_by_frames_from_first_to_last(embedder, vae):
    latents = torch.randn(1, 16, 6, 6, 4, generator=torch.Generator().manual_seed(2))
    every = ChoicePolicy(similarity=2.0, sharpness=0.0)
    kept = shot_keyframes(latents, 4, vae, embedder, FORMAT, (32, 48), every)
    assert [(keyframe.shot, keyframe.frame) for keyframe in kept] == [(4, 0), (4, 2), (4, 5)]
    whole = vae.decode(latents)[0]
    assert torch.allclose(decoded_frame(latents, vae, 0), whole[0], atol=1e-3)
    assert torch.allclose(decoded_frame(latents, vae, 2), whole[8], atol=1e-3)
    one = shot_keyframes(latents, 4, vae, embedder, FORMAT, (32, 48), ChoicePolicy(similarity=-1.0))
    assert len(one) == 1, "near copies are not kept twice"
