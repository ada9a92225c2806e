"""Between latents, pictures and what measures them: decoding, video sources, keyframes, embeddings."""
