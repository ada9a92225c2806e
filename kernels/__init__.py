"""Frame attention: Triton kernels, each with a PyTorch twin, chosen by a capability check."""
