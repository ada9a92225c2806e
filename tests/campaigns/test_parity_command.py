"""The parity command over a stand-in for an original checkout: a package with its entry points, whose film is ours or,
where it is told to, another one from a block on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from longreel.benchmarks import parity
from safetensors.torch import save_file

from .. import tiny_models

FILES = {
    "wan/modules/causal_model.py": """
import torch


class CausalWanModel(torch.nn.Module):
    def __init__(self, model_type, dim, ffn_dim, num_layers, num_heads, text_len, freq_dim, **memory):
        super().__init__()
        self.sizes = (dim, ffn_dim, num_layers, num_heads, text_len, freq_dim)
        self.memory, self.anchor = memory, torch.nn.Parameter(torch.zeros(1))

    def load_state_dict(self, weights):
        self.weights = dict(weights)
""",
    "utils/wan_wrapper.py": """
import torch


class WanDiffusionWrapper(torch.nn.Module):
    def post_init(self):
        pass

    def forward(self, noise, update_cache=False):
        return noise
""",
    "utils/scheduler.py": """
class FlowMatchScheduler:
    def __init__(self, **_):
        pass

    def set_timesteps(self, *_, **__):
        pass
""",
    "pipeline/interactive_causal_inference.py": """
import json
import os

import comfy.sd
import torch
from longreel.film.kv_memory import LONGLIVE, MEMFLOW
from longreel.host.wan.rollout import Prompt, roll_out


class InteractiveCausalInferencePipeline:
    def __init__(self, arguments, device, generator, text_encoder, vae):
        self.generator, self.encode = generator, text_encoder
        self.denoising_step_list = torch.tensor([1000.0, 937.5, 833.3, 625.0])

    def inference(self, noise, text_prompts_list, switch_frame_indices, return_latents):
        dit = self.generator.model
        settings = MEMFLOW if "bank_size" in dit.memory else LONGLIVE
        heads = {"num_heads": dit.sizes[3], "text_dim": 128, "freq_dim": dit.sizes[5], "causal_ar": True}
        metadata = {"config": json.dumps({"transformer": heads})}
        model = comfy.sd.load_diffusion_model_state_dict(dict(dit.weights), metadata=metadata)
        first = noise.transpose(1, 2)

        def draw(block, step, shape):
            if step == 0:
                self.generator(noise, update_cache=True)
                return first[:, :, block * shape[2] : (block + 1) * shape[2]].clone()
            return torch.randn_like(torch.empty(shape[2], *shape[1:2], *shape[3:])).transpose(0, 1)[None]

        sigmas = torch.cat([self.denoising_step_list / 1000, torch.zeros(1)])
        context = self.encode(text_prompts=[""])["prompt_embeds"]
        shape = tuple(first.shape)
        film = roll_out(model, [Prompt(0, [[context, {}]])], shape, sigmas, settings=settings, noise=draw)
        latents = model.model.process_latent_in(film.latents).transpose(1, 2)
        latents[:, int(os.environ.get("STAND_IN_STRAYS", 999)) :] += 1
        return None, latents
""",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "original" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    save_file(tiny_models.dit_weights(), tmp_path / "base.safetensors")
    save_file(tiny_models.text_weights(), tmp_path / tiny_models.TEXT)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("wan", "utils", "pipeline", "diffusers"):
            del sys.modules[name]


def run(place: Path, method: str) -> tuple[int, str]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ended = parity.main(
        [str(place / "original"), "--method", method, "--weights", str(place / "base.safetensors"), "--text-encoder",
         str(place / tiny_models.TEXT), "--prompt", "A red ball jumps.", "--blocks", "2", "--size", "32x32", "--dtype",
         "float32", "--head-dim", "32", "--report", str(place / "parity.md")]
    )  # fmt: skip
    torch.set_num_threads(threads)
    return ended, (place / "parity.md").read_text()


def test_agrees(place: Path):
    ended, said = run(place, "memflow")
    assert ended == 0, said
    assert said.startswith("# Parity with memflow: agrees")
    assert "weights: base.safetensors" in said
    assert str(place) not in said, "what is sent in names no folder of a person"


def test_names_the_block_from_which_on_films_differ(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STAND_IN_STRAYS", "3")
    ended, said = run(place, "longlive")
    assert ended == 1
    rows = [line for line in said.splitlines() if line.startswith("| ")][2:]
    assert [row.split("|")[5].strip() for row in rows] == ["agrees", "DIFFERS"]


def test_a_folder_that_is_no_checkout(place: Path):
    (place / "original" / "pipeline" / "interactive_causal_inference.py").unlink()
    with pytest.raises(SystemExit, match="is no checkout of MemFlow or LongLive"):
        run(place, "memflow")
