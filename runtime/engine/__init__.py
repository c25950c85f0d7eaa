"""Continuous batching: many answers at a time through one decoder."""

from __future__ import annotations
