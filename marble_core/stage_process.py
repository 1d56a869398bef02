"""One stage's work as a process of its own: python -m marble_core.stage_process train PREPARED OUT (marble_core.runtime.again)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from marble_core import stages, study_stages
from marble_core.runtime.again import record_failure
from marble_core.types import MarbleError


def main(stage: str, *arguments: str) -> None:
    work: Callable[[], object]
    if stage == "study_cell":
        study, name, arm, seed, directory, out = arguments
        work = partial(study_stages.study_cell, study, name, arm, int(seed), directory, Path(out))
    else:
        own: Callable[..., object] = stages.train if stage == "train" else stages.evaluate
        work = partial(own, *map(Path, arguments))
    try:
        work()
    except MarbleError as error:
        record_failure(error)  # whose parent says it
        sys.exit(2)
    except Exception as error:
        record_failure(error)
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
