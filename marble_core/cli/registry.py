"""Commands on the registered models: rollback."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Annotated

import typer

from marble_core.cli.options import ROOT


def rollback(
    model: Annotated[str, typer.Argument(help="The registered model: registry.model.")] = "marble",
    to: Annotated[str | None, typer.Option(help="The version. Default: the one that the champion replaced.")] = None,
) -> None:
    """Make an earlier version of a registered model the champion again.

    Its tags, and those of the version that it replaces, say so. MLflow is the one that MLFLOW_TRACKING_URI names, else this machine's.
    """
    from marble_core.services.local import addresses, embedded
    from marble_core.tracking.registry import roll_back

    with ExitStack() as stack:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ.update(addresses(ROOT) or stack.enter_context(embedded(ROOT)))
        before, after = roll_back(model, to)
    print(f"Version {after} of {model} is the champion again, in place of version {before}.")
