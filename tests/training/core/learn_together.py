"""What the processes of test_loop.py run: a small network learns from numbered draws, straight and interrupted.

Started as `torchrun --nproc_per_node 2 learn_together.py FOLDER`; not a test itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from longreel.training.core.loop import Metrics, Schedule, train
from longreel.training.core.processes import processes

STEPS, STOP = 6, 3


def draw_loss(model: torch.nn.Module, draw: int) -> torch.Tensor:
    """Of the batch with that number. The last layer is not used by draw 0, so it has no gradient there."""
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(draw))
    y = model[1](model[0](x)) if draw == 0 else model(x)
    return (y - x.sum(-1, keepdim=True)).square().mean()


def learn(folder: Path, accumulate: int = 1, *, double: bool = False, stop: bool = False) -> dict[str, torch.Tensor]:
    """`double`: one draw is two batches. `stop`: somebody presses Ctrl-C at step STOP."""
    group = processes()
    torch.manual_seed(group.process_index)  # every process begins elsewhere: the first one's weights count
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def loss_at(draw: int) -> tuple[torch.Tensor, Metrics]:
        if stop and draw // group.num_processes == STOP:
            raise KeyboardInterrupt
        draws = (2 * draw, 2 * draw + 1) if double else (draw,)
        loss = torch.stack([draw_loss(model, number) for number in draws]).mean()
        return loss, {"noise": float(torch.rand(()))}

    schedule = Schedule(STEPS, 1e-2, warmup=2, accumulate=accumulate, max_grad_norm=1.0)
    # Only the first process has the folder, as on several machines.
    mine = folder if group.is_main_process else folder / f"process-{group.process_index}"
    return train("line", model, loss_at, schedule, mine, say=lambda _: None)


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    learn(root / "straight")
    try:
        learn(root / "interrupted", stop=True)
    except KeyboardInterrupt:
        average = learn(root / "interrupted")
        torch.save(average, root / f"average-{processes().process_index}.pt")
