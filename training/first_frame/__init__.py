"""FFGo: a LoRA that films a cast composed into the first frame (2511.15700)."""
