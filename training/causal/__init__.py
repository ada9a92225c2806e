"""MemFlow on the miniature: a causal model learns to use its KV memory (2512.14699)."""
