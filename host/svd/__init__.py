"""Stable Video Diffusion in ComfyUI: AID's adapters on its UNet, and what it is conditioned with."""
