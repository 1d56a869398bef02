"""The command that serves the champion."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Annotated

import typer

from marble_core.cli.options import ROOT, File, Preset, Set, load


def serve(
    preset: Preset = "demo",
    config: File = None,
    assignments: Set = None,
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 is all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks at the registry's alias.")] = 30,
) -> None:
    """Serve the champion of registry.model: POST /v1/images/generations, and a page with base and champion side by side.

    The alias is looked at again and again: a promoted version is loaded beside the old one and takes over, and a roll-back is
    followed at once. There is no key: whoever reaches the port may draw.
    """
    from marble_core.services.local import addresses, embedded
    from marble_core.serving.server import run

    settings, _ = load(preset, config, assignments)
    with ExitStack() as stack:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ.update(addresses(ROOT) or stack.enter_context(embedded(ROOT)))
        run(settings, host, port, every, print)
