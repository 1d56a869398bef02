"""A training's history in a checkpoint: closed parts, which later checkpoints share, and the lines since the last of them.

With K rewards a step's line has K (K - 1) / 2 cosines. So a checkpoint that wrote all lines anew would grow by the run. A part is
named by its content (checkpoints/manifest.py), is written once and linked from then on; on S3 it lies beside the checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marble_core.checkpoints.manifest import is_shared
from marble_core.config.stage_files import HISTORY
from marble_core.tracking.step_history import as_lines, write_history

STEPS = 32  # of a part


@dataclass
class HistoryParts:
    """The closed parts of a history, in order, and the last whole checkpoint that holds them."""

    names: list[str] = field(default_factory=list)
    place: Path | None = None

    def write(self, history: Sequence[Mapping[str, Any]], directory: Path) -> None:
        """``history`` must begin as it did at the call before, unless ``read`` has come between. It may be shorter."""
        whole = len(history) // STEPS
        for n in range(whole):
            if n >= len(self.names) or not self._linked(self.names[n], directory):
                text = as_lines(history[n * STEPS : (n + 1) * STEPS]).encode()
                name = f"history-{n:06d}-{hashlib.sha256(text).hexdigest()}.jsonl"
                (directory / name).write_bytes(text)
                self.names[n : n + 1] = [name]
        write_history(history[whole * STEPS :], directory / HISTORY)

    def read(self, directory: Path) -> list[dict[str, Any]]:
        """All lines of a whole checkpoint; later ones link its parts."""
        self.names, self.place = sorted(path.name for path in directory.iterdir() if is_shared(path.name)), directory
        files = [*self.names, HISTORY]
        return [json.loads(line) for file in files for line in (directory / file).read_text(encoding="utf-8").splitlines()]

    def _linked(self, name: str, directory: Path) -> bool:
        """Whether the part could be had without writing it: the same file, or a copy where the disk has no links."""
        source = self.place / name if self.place else None
        if source is None or not source.is_file():  # retention or a user has taken it away
            return False
        try:
            os.link(source, directory / name)
        except OSError:
            shutil.copyfile(source, directory / name)
        return True
