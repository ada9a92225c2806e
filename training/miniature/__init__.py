"""The small world's own models, trained from scratch in stages."""
