"""FilmWeaver: a LoRA that remembers earlier shots and frames (2512.11274)."""
