<<<<<<< HEAD
"""Adapter files of the methods: read, fitted to a model, attached as stock patches."""
=======
"""The files of adapters: read, fitted to a model, attached, written."""
>>>>>>> 70ff31a (host: a joint latent of appearance and motion through a stock Wan model, its adapter file, and inner guidance)
