"""MLflow for the commands that read what runs have left in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from marble_core.cli.options import ROOT


@contextmanager
def mlflow_of_runs() -> Iterator[None]:
    """MLFLOW_TRACKING_URI for the block: the environment's, that of the server that runs here, or of one that is started.

    Raises MarbleError where no run has been here: no server is started to be asked for nothing.
    """
    from marble_core.services.local import addresses, embedded
    from marble_core.types import MarbleError

    if os.environ.get("MLFLOW_TRACKING_URI"):
        yield
        return
    if not (ROOT / "mlflow").is_dir():
        raise MarbleError(
            f"Nothing has run in this directory, for it has no {ROOT / 'mlflow'}: "
            "go to the directory of your runs, or name their server in MLFLOW_TRACKING_URI."
        )
    if running := addresses(ROOT):
        os.environ.update(running)
        yield
        return
    with embedded(ROOT) as environment:
        os.environ.update(environment)
        yield
