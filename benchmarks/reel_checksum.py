"""What checksums add to writing and reading a shot's file: `python benchmarks/reel_checksum.py [MB]`."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from longreel.film.reel import stored_tensors, tensor_file
from longreel.film.reel.checksum import checksum


def seconds(run: object) -> float:
    """Processor time of the fastest of three."""
    times = []
    for _ in range(3):
        start = time.process_time()
        run()  # type: ignore[operator]
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Prints seconds for a GB."""
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 512
    tensor = torch.randint(-128, 127, (megabytes << 20,), dtype=torch.int8)
    with tempfile.TemporaryDirectory() as folder:
        path, info = Path(folder) / "x.safetensors", {"kind": "shot", "shots": [{"uid": "a", "prefix": ""}]}

        def write() -> None:
            tensor_file.write_tensor_file(path, info, {"x": tensor}, durable=False)

        def read() -> None:
            stored_tensors._verified.clear()
            loaded = stored_tensors.StoredTensors(tensor_file.read_header(path), "a").load(["x"])["x"]
            loaded.view(torch.int64)[:: 4096 // 8].sum()  # touches every page, as any use does

        with_sums = seconds(write), seconds(read)
        tensor_file.checksum = stored_tensors.checksum = lambda data, before=0: 0  # type: ignore[assignment]
        write()
        without = seconds(write), seconds(read)
    alone = seconds(lambda: checksum(tensor.numpy().data))
    for what, one, other in (("write", *(with_sums[0], without[0])), ("read", *(with_sums[1], without[1]))):
        print(f"{what}: {one * 1024 / megabytes:.2f} s a GB with checksums, {other * 1024 / megabytes:.2f} s without")
    print(f"the checksum alone: {alone * 1024 / megabytes:.2f} s a GB")


if __name__ == "__main__":
    main()
