"""The pure core of film-making: storyboard, reel, memory. Nothing here imports ComfyUI."""
