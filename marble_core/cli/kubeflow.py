"""What the commands on a Kubeflow cluster share: the options that say where it is, and how they print its answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from marble_core.cli.options import seconds

if TYPE_CHECKING:
    from marble_kubeflow.pipelines.cluster import Cluster
    from marble_kubeflow.pipelines.connection import Target

Every = Annotated[
    float, typer.Option(parser=seconds(0.01), metavar="DURATION", help="How often to ask: 10s, or 10 for seconds.")
]
Timeout = Annotated[
    float | None,
    typer.Option(parser=seconds(0), metavar="DURATION", help="Stop waiting after this time: 24h, 90m. Default: never."),
]


def _where(
    host: Annotated[
        str,
        typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="Kubeflow Pipelines' address. Default: the pod's, or kubeconfig's."),
    ] = "",
    namespace: Annotated[
        str, typer.Option(envvar="KF_PIPELINES_NAMESPACE", help="The namespace, where each user has one.")
    ] = "",
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="KF_PIPELINES_SA_TOKEN_PATH",
            help="A file with the token; KF_PIPELINES_TOKEN holds the token itself. Default: the pod's projected token.",
        ),
    ] = None,
    ca: Annotated[Path | None, typer.Option(envvar="SSL_CERT_FILE", help="The certificates to trust (PEM).")] = None,
    request_timeout: Annotated[
        float, typer.Option(parser=seconds(0.01), metavar="DURATION", help="Time that one answer may take: 30s.")
    ] = 30,
) -> Target:
    from marble_kubeflow.pipelines.connection import Target

    return Target(host, namespace, token_file, ca, request_timeout)


def at_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of ``_where``, from which it gets its first argument, the Target."""
    where = _options(_where)

    @wraps(command)
    def run(**given: Any) -> None:
        command(_where(**{option.name: given.pop(option.name) for option in where}), **given)

    options = [option for option in _options(command) if option.name != "target"] + where
    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def _options(command: Callable[..., Any]) -> list[inspect.Parameter]:
    """What a command takes, as typer reads it; Target is no option, and is imported later."""
    read = {name: said for name, said in command.__annotations__.items() if said not in ("Target", "None")}
    hints = get_type_hints(SimpleNamespace(__annotations__=read), command.__globals__, include_extras=True)
    parameters = inspect.signature(command).parameters.values()
    return [p.replace(kind=p.KEYWORD_ONLY, annotation=hints.get(p.name, p.annotation)) for p in parameters]


def cluster_at(target: Target) -> Cluster:
    from marble_kubeflow.pipelines.cluster import Cluster

    return Cluster.at(target)


def said(answer: Any) -> dict[str, Any]:
    from marble_kubeflow.pipelines.cluster import as_json

    return as_json(answer)


def print_table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]], least: tuple[str, ...] = ()) -> None:
    """On a terminal that is too narrow the columns of ``least`` are left out, the first of them first."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    console, shown, wanted = Console(highlight=False), list(rows), list(headings)
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no width by which a name would be broken
    for dropped in (None, *least):
        if dropped:
            wanted.remove(dropped)
        table = Table(*wanted)
        for row in shown:
            table.add_row(*(cell for heading, cell in zip(headings, row, strict=True) if heading in wanted))
        if Measurement.get(console, console.options.update(max_width=1000), table).maximum <= console.width:
            break
    console.print(table)
