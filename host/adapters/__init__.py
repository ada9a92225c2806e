"""Adapter files of the methods: read, fitted to a model, attached as stock patches."""
