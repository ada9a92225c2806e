"""Fixtures for every room's tests."""

from __future__ import annotations
