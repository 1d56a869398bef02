"""The processes of this machine by their command lines, as every user of it sees them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KINDS = {  # by what stands behind -m
    "marble_core.training.torchrun": "torchrun",
    "marble_core.training.launch": "worker",
    "kfp.dsl.executor_main": "stage",
    "marble_kubeflow.pipelines.local": "pipeline",
}


def command_lines() -> dict[int, list[str]]:
    """The words of each process that has not ended."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().decode(errors="replace").strip("\0").split("\0")
            if "\nState:\tZ" not in (place / "status").read_text():
                found[int(place.name)] = words
        except OSError:
            continue
    return found


def running(mark: str) -> dict[str, list[int]]:
    """The processes that have the mark on their command line, by what they are; of each kind the oldest first."""
    found: dict[str, list[int]] = {kind: [] for kind in (*KINDS.values(), "another")}
    for pid, words in sorted(command_lines().items()):
        if any(mark in word for word in words):
            module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
            found[KINDS.get(module, "another")].append(pid)
    return found


@contextmanager
def all_command_lines() -> Iterator[set[str]]:
    """Those of every process that runs at any time in the block, but for the shortest-lived."""
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.1):
            seen.update(" ".join(words) for words in command_lines().values())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
