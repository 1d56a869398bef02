"""Progress events as plain lines: of the laptop's command where it has no terminal, and of a stage's own log on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PAUSE = 10.0  # seconds between two lines of one stage that say nothing but how far it is


def describe_step(metrics: Mapping[str, float]) -> str:
    """Reward means with their alpha, and the worst cosine, on one line: "ocr 0.61 (.20)  ...  worst cosine +0.03 (held out -0.01)".

    The cosine is that of the update with the reward's gradient that it helps least; held out, that of a direction found on
    one half of the prompts with gradients of the other half, which is what says something of the next batch.
    """
    parts = []
    for key, value in metrics.items():
        kind, _, rest = key.partition("/")
        name, _, what = rest.rpartition("/")
        if kind == "reward" and what == "mean":
            alpha = metrics.get(f"alpha/{name}")
            parts.append(f"{name} {value:.3g}" + ("" if alpha is None else f" ({alpha:.2f})"))
    if "cosine/worst" in metrics:
        held_out = metrics.get("held_out/worst")
        parts.append(
            f"worst cosine {metrics['cosine/worst']:+.3f}" + ("" if held_out is None else f" (held out {held_out:+.3f})")
        )
    return "  ".join(parts)


def counted(event: Mapping[str, Any]) -> str:
    """The stage, and where it is: "train 12/300"."""
    return event["stage"] + (f" {event['done']}/{event.get('total', '?')}" if "done" in event else "")


def spoken(event: Mapping[str, Any]) -> str:
    """What an event has to say beyond that; empty where it has nothing."""
    return "  ".join(filter(None, [describe_step(event.get("metrics", {})), event.get("note", "")]))


def in_minutes(seconds: float) -> str:
    """A duration, in seconds where it has less than 90 of them."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


class Lines:
    """One line per event, with the time left by the pace since the stage's first count."""

    def __init__(self, pause: float = 0.0) -> None:
        self._pause = pause
        self._first: dict[str, tuple[float, int]] = {}  # of each stage: when its first count came, and the count
        self._last: dict[str, tuple[float, str]] = {}  # of each stage: when its last line was written, and its note

    def line(self, event: Mapping[str, Any]) -> str:
        """Empty where there is nothing to write: no words, or a count without news, less than ``pause`` seconds after the last."""
        words = [event.get("state", ""), spoken(event), self._left(event)]
        if "done" in event:
            before, note = self._last.get(event["stage"], (-self._pause, ""))
            new = event["done"] == event.get("total") or event.get("note", note) != note
            if event["time"] - before < self._pause and not new:
                return ""
            self._last[event["stage"]] = (event["time"], event.get("note", ""))
        return f"{counted(event)}  {'  '.join(filter(None, words))}" if "done" in event or any(words) else ""

    def _left(self, event: Mapping[str, Any]) -> str:
        """The time left, from the pace since the stage's first count."""
        if "done" not in event or "total" not in event:
            return ""
        began, at = self._first.setdefault(event["stage"], (event["time"], event["done"]))
        if event["done"] <= at:
            return ""
        seconds = (event["time"] - began) / (event["done"] - at) * (event["total"] - event["done"])
        return f"[{in_minutes(seconds)} left]"
