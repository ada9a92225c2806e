"""Whether the bare machine has what the miniature's training needs, within seconds: imports, a small step."""

from __future__ import annotations

import time

began = time.monotonic()
import torch  # noqa: E402

print(f"torch {torch.__version__}, CUDA {torch.cuda.is_available()}, {time.monotonic() - began:.1f} s")
from longreel.training.core.command_line import start_comfyui  # noqa: E402
from longreel.training.miniature.pipeline import prepare_device  # noqa: E402

start_comfyui()
import comfy.sd  # noqa: E402, F401
from longreel.training.__main__ import COMMANDS  # noqa: E402
from longreel.training.miniature import budget, evaluate  # noqa: E402, F401
from longreel.training.miniature.dit import DitRecipe, Miniature, predict  # noqa: E402
from longreel.training.miniature.vae import build_vae, decode, encode  # noqa: E402

print(f"{len(COMMANDS)} commands, imports {time.monotonic() - began:.1f} s")
device = prepare_device()
model, vae = Miniature(DitRecipe()).to(device), build_vae(16).to(device)
with torch.autocast(device.type, torch.bfloat16):
    x, tokens = torch.randn(2, 16, 6, 8, 8, device=device), torch.ones(2, 48, dtype=torch.long, device=device)
    attention_mask = torch.ones(6, 6, dtype=torch.bool, device=device).tril()
    text_mask = torch.ones(2, 6, 48, dtype=torch.bool, device=device)
    position = torch.arange(6, device=device).expand(2, -1)
    levels = torch.full((2, 6), 500.0, device=device)
    v = predict(
        model.dit, x, levels, model.text(tokens), position=position, attention_mask=attention_mask, text_mask=text_mask
    )
    clip = torch.rand(1, 3, 5, 64, 64, device=device).contiguous(memory_format=torch.channels_last_3d)
    made = decode(vae, encode(vae, clip))
(v.float().square().mean() + made.float().square().mean()).backward()
print(f"one pass of each: {float(made.float().std()):.3f}, {time.monotonic() - began:.1f} s")
