"""One stage's work as a process of its own: python -m marble_core.stage_process train PREPARED OUT (marble_core.runtime.again)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from marble_core import stages
from marble_core.runtime.again import record_failure
from marble_core.types import MarbleError


def main(stage: str, *arguments: str) -> None:
    work: Callable[..., object] = stages.train if stage == "train" else stages.evaluate
    paths: Sequence[Path] = [Path(argument) for argument in arguments]
    try:
        work(*paths)
    except MarbleError as error:
        record_failure(error)  # whose parent says it
        sys.exit(2)
    except Exception as error:
        record_failure(error)
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
