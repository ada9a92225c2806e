"""Encoded scenes from a person's own films: cut, grouped, captioned, encoded."""
