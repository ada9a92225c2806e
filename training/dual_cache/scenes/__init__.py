"""Encoded scenes from a user's films: cut, grouped, captioned, encoded."""
