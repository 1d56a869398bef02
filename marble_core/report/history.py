"""Training by step, as history.jsonl tells it."""

from __future__ import annotations
