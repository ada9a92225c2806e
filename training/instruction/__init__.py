"""AID's trainer and measures: datasets of clips and sentences, training on Stable Video Diffusion, evaluation."""
