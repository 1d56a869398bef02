"""The command that serves the champion."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from marble_core.cli.options import ROOT, File, Preset, Set, load, seconds


def serve(
    preset: Preset = "demo",
    config: File = None,
    assignments: Set = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 means all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    every: Annotated[
        float, typer.Option(parser=seconds(1), metavar="DURATION", help="How often to look at the registry's alias: 30s.")
    ] = 30,
    render: Annotated[
        str, typer.Option(help="Print it for a cluster instead: kserve (an InferenceService) or deployment (and its Service).")
    ] = "",
    name: Annotated[str, typer.Option(help="With --render: the name of what is printed. Default: marble.")] = "",
    pods: Annotated[
        Path | None,
        typer.Option("--settings", help="With --render: the settings file of marble compile, for image and secrets."),
    ] = None,
) -> None:
    """Serve the champion of registry.model: POST /v1/images/generations, and a page with base and champion side by side.

    It follows the alias champion. A promoted version is loaded beside the old one, and then takes over; a rollback is followed too.
    There is no key: whoever reaches the port may draw images.
    """
    settings, overrides = load(preset, config, assignments)
    if render or name or pods:
        return print(_rendered(render, name or "marble", preset, overrides, every, settings.hardware.gpus, pods), end="")
    from marble_core.services.local import addresses, embedded
    from marble_core.serving.server import run

    with ExitStack() as stack:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ.update(addresses(ROOT) or stack.enter_context(embedded(ROOT)))
        run(settings, host, port, every, print)


def _rendered(form: str, name: str, preset: str, overrides: Sequence[str], every: float, gpus: int, file: Path | None) -> str:
    """The manifest of this very command line, in a pod with one GPU, or none for a preset without."""
    from marble_core.types import MarbleError
    from marble_kubeflow.pipelines.serving import FORMS, rendered
    from marble_kubeflow.pipelines.settings import read_settings

    if form not in FORMS:
        raise MarbleError(f"There is no --render {form!r}: give one of {', '.join(FORMS)}.")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?", name):
        raise MarbleError(
            f"The name {name!r} is none of Kubernetes': give --name small letters, digits and dashes, such as marble."
        )
    arguments = ["--preset", preset, *(part for each in overrides for part in ("--set", each)), "--every", f"{every:g}"]
    return rendered(FORMS[form], name, arguments, min(1, gpus), read_settings(file))
