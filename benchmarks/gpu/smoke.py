"""Whether the pack is right on this machine's GPU: kernels, films, decoders. In minutes, without a network.

    python benchmarks/gpu/smoke.py [--device cuda|mps|cpu] [--out FILE]

In an environment that has ComfyUI's requirements, with ComfyUI and `longreel` to import (scripts/comfy.py makes one:
.comfy/venv/bin/python). Weights are random, but the architectures are real. A line for each check: passed with
its error, or FAILED with the reason. Ends with 1 where one failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

Check = Callable[[torch.device], str]


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """The error's norm over that of what was wanted."""
    return float((got.double().cpu() - want.double().cpu()).norm() / want.double().norm().cpu())


def within(error: float, bound: float, what: str) -> str:
    """Say the error; raises AssertionError where it is beyond the bound or no number."""
    assert error <= bound, f"{what} is off by {error:.1e}, bound {bound:.0e}"
    return f"{what} off by {error:.1e}"


def attention(device: torch.device) -> str:
    """Frame attention against float64, for two heads at a quarter of the size of a block of Wan 1.3B."""
    from longreel.kernels import backends, ops, reference, runs

    q = torch.randn(1, 2, 1170, 128, device=device, dtype=half(device))
    k, v = torch.randn(2, 1, 2, 9 * 390, 128, device=device, dtype=half(device))
    table, count = runs.slot_runs(torch.tensor([[[[0, 2, 5, 6, 7]], [[1, 2, 5, 6, 7]]]], device=device), 390)
    want = reference.attend(*(x.double().cpu() for x in (q, k, v)), table.cpu(), count.cpu(), 1170, 128**-0.5)[0]
    error = relative(ops.frame_attention(q, k, v, table, count), want)
    return f"{within(error, 5e-3, 'output')}, {backends.select_backend(backends.Problem.of(q, 128, k, v)).backend}"


def activation(device: torch.device) -> str:
    """Picks and copies of sparse activation are PyTorch's."""
    from longreel.kernels import sparse

    q = torch.randn(1, 12, 4680, 128, device=device, dtype=half(device))
    means = torch.randn(6, 12, 128, device=device)
    k, v = torch.randn(2, 1, 12, 19 * 1560, 128, device=device, dtype=half(device))
    wanted = torch.einsum("hd,nhd->hn", q[0].mean(dim=1, dtype=torch.float32), means)
    picks = wanted.argsort(dim=1, descending=True, stable=True)[:, :3].sort(dim=1).values
    got = sparse.pick_frames(q, means, 3)
    sparse.copy_frames(k, v, got, 1, 16, 1560)
    heads = torch.arange(12, device=device).unsqueeze(1)
    for arena in (k, v):
        frames = arena[0].unflatten(1, (-1, 1560))
        assert torch.equal(frames[:, 16:], frames[heads, got + 1]), "copied frames differ from those picked"
    same = int((got == picks).sum())
    assert same >= got.numel() - 1, f"{got.numel() - same} of {got.numel()} picks are not PyTorch's"
    return f"{same} of {got.numel()} picks are PyTorch's, {'kernels' if sparse.has_kernel(q) else 'no kernels here'}"


def preparation(device: torch.device) -> str:
    """QK preparation against float64."""
    from longreel.kernels import ops, reference

    frames, rows, columns = 3, 6, 10
    length, at = frames * rows * columns, torch.arange(frames, dtype=torch.int32, device=device)
    given = [torch.randn(1, length, 1536, device=device, dtype=half(device)) for _ in range(3)]
    given += [torch.rand(1536, device=device, dtype=half(device)) + 0.5 for _ in range(2)]
    tables = reference.rope_tables(frames, rows, columns, 128, device=device)
    stored = [torch.zeros(1, 12, length, 128, device=device, dtype=half(device)) for _ in range(2)]
    q, _ = ops.qk_prep(*given, tables, at, *stored, torch.zeros(1, 12, frames, 128, device=device), at)
    exact = [torch.zeros(1, 12, length, 128, dtype=torch.float64) for _ in range(2)]
    means, slots = torch.zeros(1, 12, frames, 128, dtype=torch.float64), at.cpu()
    wide = [x.double().cpu() for x in given]
    want, _ = reference.prepare(*wide, tuple(t.cpu() for t in tables), slots, 1e-6, *exact, means, slots)
    return f"{within(relative(q, want), 5e-3, 'queries')}, {within(relative(stored[0], exact[0]), 5e-3, 'keys')}"


def films(device: torch.device) -> str:
    """Three memories of a causal film of the miniature's base: numbers, and twice the same."""
    from dataclasses import replace

    from longreel.film.kv_memory import LONGLIVE, MEMFLOW
    from longreel.host.wan.rollout import Prompt, roll_out

    bench = script("rollout")
    model, width = bench.build("miniature")
    prompt = [[torch.randn(1, 48, width), {}]]
    sigmas = torch.tensor(bench.SIGMAS)
    for settings in (LONGLIVE, MEMFLOW, replace(MEMFLOW, active=3)):
        made = [roll_out(model, [Prompt(0, prompt)], (1, 16, 24, 8, 8), sigmas, settings=settings) for _ in range(2)]
        assert bool(made[0].latents.isfinite().all()), "latents are not finite"
        within(relative(made[1].latents, made[0].latents), 1e-3, "the second film")
    return "8 blocks each by window, bank and sparse bank, twice the same"


def decoders(device: torch.device) -> str:
    """The full Wan decoder and a tiny one as streams, against core's decode at once."""
    import comfy.ldm.wan.vae
    import comfy.sd
    from comfy.taesd.taehv import TAEHV
    from longreel.host.families import of_vae

    full = comfy.ldm.wan.vae.WanVAE(
        dim=32, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True]
    )
    said = []
    for name, network in (("full", full), ("tiny", TAEHV(16))):
        state = {key: value + 0.0 for key, value in network.state_dict().items()}
        for key, value in state.items():
            size = value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
            state[key] = torch.ones_like(value) if key.endswith("gamma") else size * torch.randn(value.shape)
        vae = comfy.sd.VAE(sd=state)
        latents = torch.randn(1, 16, 5, 12, 20)
        want, decoder = vae.decode(latents)[0].clamp(0, 1), of_vae(vae).decoder()
        got = torch.cat([frames for part in latents.split(2, dim=2) for frames in decoder.decode(part)])
        said.append(within(relative(got, want), 2e-2, f"{name} ({vae.vae_dtype})"))
    return ", ".join(said)


def half(device: torch.device) -> torch.dtype:
    """What kernels run in there."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def script(name: str):
    """A benchmark of this project as a module."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


CHECKS: tuple[Check, ...] = (attention, activation, preparation, films, decoders)


def main() -> int:
    """Run every check. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "mps", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    chosen = parser.parse_args()
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "cpu": lambda: True}
    if not there[chosen.device]():
        print(f"This PyTorch sees no {chosen.device} device: name another with --device, or run where there is one.")
        return 1
    import comfy.options

    own, sys.argv = sys.argv, [sys.argv[0], *(["--cpu"] if chosen.device == "cpu" else [])]
    comfy.options.enable_args_parsing()
    import comfy.cli_args

    sys.argv = own
    device = torch.device(chosen.device)
    name = torch.cuda.get_device_name() if chosen.device == "cuda" else chosen.device
    print(f"{name}, torch {torch.__version__}", flush=True)
    results: dict[str, str] = {}
    for check in CHECKS:
        began = time.perf_counter()
        torch.manual_seed(0)
        try:
            with torch.inference_mode():
                verdict = f"passed: {check(device)}"
        except Exception as error:
            verdict = f"FAILED: {type(error).__name__}: {error}"
        results[check.__name__] = verdict
        print(f"{check.__name__}: {verdict} ({time.perf_counter() - began:.1f} s)", flush=True)
    if chosen.out:
        record = {"device": name, "torch": torch.__version__, "checks": results}
        chosen.out.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return int(any(verdict.startswith("FAILED") for verdict in results.values()))


if __name__ == "__main__":
    sys.exit(main())
