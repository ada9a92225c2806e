"""Where the methods meet ComfyUI's Wan models: causal forward, cache tokens, given first frames."""
