"""The command line. An error that the user can mend is one sentence and exit code 2; a stage that broke is exit code 1.

One file a group of commands. Heavy imports are inside the commands, so that ``marble --help`` answers at once.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

import typer

from marble_core.cli import checkpoints, demo, evidence, models, pipeline

app = typer.Typer(
    help="MARBLE: fine-tune a text-to-image model on several rewards at once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (pipeline.run, pipeline.check, models.fetch, pipeline.compile_, pipeline.ui, evidence.bench, evidence.study):
    app.command(command.__name__.rstrip("_"))(command)
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(demo.app, name="demo")


def main() -> NoReturn:
    """The entry point: turns the two kinds of expected failure into text and an exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # lets the services end
    try:
        app()
    except Exception as error:
        from marble_core.progress import StageFailed
        from marble_core.types import MarbleError

        if not isinstance(error, MarbleError | StageFailed):
            raise
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, MarbleError) else 1)
    sys.exit(0)
