"""What every recipe runs on: the loop, processes, LoRA, memory plans. Knows no method and no miniature."""
