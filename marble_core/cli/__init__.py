"""The command line. An error that the user can mend is one sentence and exit code 2; docs/command_line.md has all exit codes.

One file a group of commands. Heavy imports are inside the commands, so that ``marble --help`` answers at once.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer

from marble_core.cli import (
    bench,
    checkpoints,
    cluster,
    demo,
    evaluate,
    experiments,
    fetch,
    listing,
    pipeline,
    registry,
    runs,
    serve,
    ui,
    votes,
)
from marble_core.cli.examples import add_examples
from marble_core.runtime.environment import CA
from marble_core.runtime.noise import quieten
from marble_core.runtime.sigterm import sigterm_raises

app = typer.Typer(
    help="MARBLE: fine-tune a text-to-image model on several rewards at once.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _say_version(wanted: bool) -> None:
    if wanted:
        from marble_core import __version__

        print(f"marble {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for command in (
    pipeline.run,
    pipeline.init,
    pipeline.check,
    listing.list_,
    fetch.fetch,
    evaluate.evaluate,
    pipeline.compile_,
    cluster.submit,
    ui.ui,
    experiments.study,
    experiments.compare,
    registry.rollback,
    registry.export,
    serve.serve,
):
    app.command(command.__name__.rstrip("_"))(command)
app.add_typer(cluster.schedule, name="schedule")
app.add_typer(bench.app, name="bench")
app.add_typer(runs.app, name="runs")
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(votes.app, name="votes")
app.add_typer(demo.app, name="demo")
add_examples(app)


_UsageError: Any = typer.BadParameter.__base__  # typer does not name it


def main() -> NoReturn:
    """The entry point: turns the two kinds of expected failure into text and an exit code."""
    with sigterm_raises():  # which lets the services end
        _main()


def _main() -> NoReturn:
    try:
        quieten()
        if os.environ.get(CA):
            from marble_core.runtime.certificates import trust_private_roots

            trust_private_roots()
        code = app(standalone_mode=False)
    except _UsageError as error:
        if error.format_message():  # a group of commands without one has printed its help
            print(_sentence(error), file=sys.stderr)
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - a bug is printed, and ends with exit code 1
        from marble_core.cli.extras import missing
        from marble_core.runtime.files import disk_error
        from marble_core.runtime.progress import StageFailed
        from marble_core.types import MarbleError, without_secrets

        expected = error if isinstance(error, MarbleError | StageFailed) else disk_error(error)
        if isinstance(error, ModuleNotFoundError):
            expected = missing(error, sys.argv[1:])
        if expected is None:  # a bug; a library's error may quote the login of an address
            print(without_secrets(traceback.format_exc()), end="", file=sys.stderr)
            sys.exit(1)
        from marble_core.cli.options import with_what_to_fetch

        print(with_what_to_fetch(str(expected)), file=sys.stderr)
        sys.exit(2 if isinstance(expected, MarbleError) else 1)
    sys.exit(code or 0)


def _sentence(error: Any) -> str:
    """What is wrong with the command line, on one line, and where its help is."""
    said = " ".join(error.format_message().split()).replace("Value error, ", "")
    where = error.ctx.command_path if error.ctx else "marble"
    return f"{(_of_an_argument(said, error) or _of_a_setting(said, error) or said).rstrip('.')} (see {where} --help)."


def _of_an_argument(said: str, error: Any) -> str | None:
    """The sentence for an argument that was given as an option, such as --preset of fetch."""
    found = re.search(r"No such option: --([\w-]+)", said)
    arguments = [one.name for one in error.ctx.command.params if one.param_type_name == "argument"] if error.ctx else []
    if not found or found[1].replace("-", "_") not in arguments:
        return None
    return f"There is no option --{found[1]}, for it is an argument: {error.ctx.command_path} {found[1].upper()}"


def _of_a_setting(said: str, error: Any) -> str | None:
    """The sentence for a setting that was not given by --set: as an option of its own, or as an argument. None for anything else."""
    takes_settings = error.ctx and "--set" in [option for one in error.ctx.command.params for option in one.opts]
    if not takes_settings or not (found := re.search(r"No such option: --([\w-]+)|extra arguments?.*\(([\w.]+)=", said)):
        return None
    from marble_core.config.errors import leaves

    option, key = found.groups()
    named = leaves().get(option.replace("-", "_"), []) if option else [key]
    what = f"no option --{option}" if option else f"no argument {key}"
    return f"There is {what}, but settings are given by --set: --set {named[0]}=VALUE" if named else None
