"""The settings that a run was begun with on this machine, so that ``marble run --run-id RUN`` alone goes on with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from marble_core.types import MarbleError

FILE = "command.json"  # in the run's directory


@dataclass(frozen=True)
class RunSettings:
    """The preset, what lies over it, and whether the run is a rehearsal."""

    preset: str
    overrides: Sequence[str]
    rehearse: bool = False

    def write(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / FILE).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> RunSettings | None:
        """None where nothing was begun in the directory. Raises MarbleError for a file that ``write`` has not written."""
        file = directory / FILE
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            return cls(str(found["preset"]), tuple(map(str, found["overrides"])), bool(found["rehearse"]))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError, LookupError):
            raise MarbleError(f"{file} cannot be read: delete it, and give the run's settings again.") from None
