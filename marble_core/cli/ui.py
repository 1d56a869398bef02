"""The command that shows runs and models in MLflow's pages: ui."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from marble_core.cli.options import ROOT


def ui(
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 means all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 0,
    experiment: Annotated[str, typer.Option(help="The experiment whose page is shown: storage.experiment.")] = "marble",
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser too.")] = False,
) -> None:
    """Show runs and models in MLflow's pages until interrupted, and say where the newest report lies.

    With a --host other than 127.0.0.1 the password crosses the network unencrypted.

    No server is started where MLFLOW_TRACKING_URI names one, or where a run here has one: its address is printed.
    """
    from marble_core.services.local import addresses, embedded
    from marble_core.types import without_secrets

    if url := os.environ.get("MLFLOW_TRACKING_URI"):
        print(f"MLflow answers at {without_secrets(url)}")
        _show(experiment, open_)
    elif "MLFLOW_TRACKING_URI" in (running := addresses(ROOT)):
        print(f"{_where_mlflow_is(running)}; it runs already, so --host and --port do not count")
        os.environ.update(running)
        _show(experiment, open_)
    else:
        with embedded(ROOT, listen=(host, port)) as environment:
            os.environ.update(environment)
            print(f"{_where_mlflow_is(environment)}; end with Ctrl-C", flush=True)
            _show(experiment, open_)
            signal.pause()


def _show(experiment: str, open_: bool) -> None:
    """The experiment's page, which the browser opens where that is wanted, and the newest report."""
    from marble_core.tracking.provenance import experiment_page

    page = experiment_page(experiment)
    if page:
        print(f"Runs: {page}", flush=True)
    for report in _newest_report(ROOT / "runs"):
        print(f"Newest report: {report.resolve().as_uri()}", flush=True)
    if open_ and page:
        import webbrowser

        if not webbrowser.open(page):
            print("No browser could be started here: open the address yourself.", flush=True)


def _newest_report(runs: Path) -> Iterator[Path]:
    from marble_core.config.stage_files import REPORT

    yield from sorted(runs.glob(f"*/{REPORT}"), key=lambda path: path.stat().st_mtime)[-1:]


def _where_mlflow_is(environment: Mapping[str, str]) -> str:
    """Address and login, for this terminal alone: a browser that is started with the password shows it in its command line."""
    user, password = environment["MLFLOW_TRACKING_USERNAME"], environment["MLFLOW_TRACKING_PASSWORD"]
    return f"MLflow answers at {environment['MLFLOW_TRACKING_URI']} (user {user}, password {password})"
