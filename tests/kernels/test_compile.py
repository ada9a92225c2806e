"""Our Triton kernels compiled ahead of time for GPUs that are not here: registers spilled, shared memory taken."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed: nothing to compile with")
if not hasattr(triton, "compile"):
    pytest.skip("this Triton compiles for no device but its own", allow_module_level=True)

from longreel.kernels import attention_triton, qk_prep_triton, sparse_triton  # noqa: E402
from longreel.kernels.configs import attention_config, prep_config  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
pytestmark = pytest.mark.skipif(not CUOBJDUMP.is_file(), reason="this Triton comes without cuobjdump")

SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KB a program may use, by architecture (CUDA programming guide, compute capabilities)."""
STACK_LIMIT = 128
"""Bytes a thread may spill."""

TYPES = {
    **dict.fromkeys(("lse_ptr", "time_ptr", "row_ptr", "column_ptr", "q_sum_ptr", "k_sum_ptr"), "*fp32"),
    **dict.fromkeys(("query_ptr", "means_ptr"), "*fp32"),
    "picks_ptr": "*i64",
    **dict.fromkeys(("runs_ptr", "count_ptr", "frame_pos_ptr", "slots_ptr"), "*i32"),
    **dict.fromkeys(("scale", "eps"), "fp32"),
}
"""Of a kernel's arguments; other pointers are to bf16, other numbers i32."""


def usage(kernel: Any, constants: dict[str, Any], architecture: int, **options: int) -> tuple[int, int]:
    """Compile as a call with aligned bf16 tensors would. Returns shared bytes and stack bytes of a thread."""
    types = {n: TYPES.get(n, "*bf16" if n.endswith("_ptr") else "i32") for n in kernel.arg_names}
    signature = types | dict.fromkeys(constants, "constexpr")
    aligned = [n.endswith("_ptr") or re.match("stride_[qkvx]", n) for n in kernel.arg_names]
    attributes = {(i,): [["tt.divisibility", 16]] for i, yes in enumerate(aligned) if yes}
    source = ASTSource(kernel, signature, constants, attributes)
    done = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    return done.metadata.shared, stack_bytes(done.asm["cubin"])


def stack_bytes(cubin: bytes) -> int:
    """Bytes of stack a thread takes: what ptxas spilled, for kernels without arrays of their own."""
    Path("kernel.cubin").write_bytes(cubin)
    shown = subprocess.run([CUOBJDUMP, "--dump-resource-usage", "kernel.cubin"], capture_output=True, text=True)
    found = re.search(r"STACK:(\d+)", shown.stdout)
    assert found, shown.stdout + shown.stderr
    return int(found[1])


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile anew each time: what a cache holds proves nothing about the compiler."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize(
    ("architecture", "head_dim"), [*((architecture, 128) for architecture in SHARED_MEMORY), (80, 64), (90, 64)]
)
def test_attention(architecture: int, head_dim: int):
    config = attention_config(divmod(architecture, 10), head_dim)
    tiles = {"HEAD_DIM": head_dim, "BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    shared, stack = usage(
        attention_triton.frame_attention_kernel,
        {**tiles, "WITH_LSE": True, "UPCAST": False},
        architecture,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    assert shared <= SHARED_MEMORY[architecture] * 1024
    assert stack <= STACK_LIMIT


@pytest.mark.parametrize(("architecture", "heads"), [*((architecture, 12) for architecture in SHARED_MEMORY), (90, 40)])
def test_preparation(architecture: int, heads: int):
    config = prep_config(heads * 128)
    pairs = {"PAIRS_TIME": 22, "PAIRS_ROW": 21, "PAIRS_COLUMN": 21}
    shared, stack = usage(
        qk_prep_triton.qk_prep_kernel,
        {"HEAD_DIM": 128, **pairs, "SIZE": triton.next_power_of_2(heads * 128), "TOKENS": config.tokens},
        architecture,
        num_warps=config.warps,
    )
    assert shared <= SHARED_MEMORY[architecture] * 1024
    assert stack <= STACK_LIMIT


@pytest.mark.parametrize("architecture", [80, 90, 120])
def test_sparse_activation(architecture: int):
    picking = {"HEAD_DIM": 128, "SIZE": 32}
    for kernel, constants in ((sparse_triton.pick_kernel, picking), (sparse_triton.copy_kernel, {"BLOCK": 8192})):
        shared, stack = usage(kernel, constants, architecture, num_warps=8)
        assert shared <= SHARED_MEMORY[architecture] * 1024
        assert stack <= STACK_LIMIT


def test_spills_are_seen():
    """The limit can fail: a tile of 256 query rows on four warps does not fit the registers."""
    tiles = {"HEAD_DIM": 128, "BLOCK_M": 256, "BLOCK_N": 32, "WITH_LSE": False, "UPCAST": False}
    _, stack = usage(attention_triton.frame_attention_kernel, tiles, 80, num_warps=4, num_stages=1)
    assert stack > STACK_LIMIT
