"""What a command needs beyond a plain ``pip install marble-core``, and the sentence where it is not there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec

from marble_core.types import MarbleError

EXTRAS = {  # of a command, or of a group of them: the extra that holds all that it may need
    "run": "all",
    "study": "all",
    "compare": "all",
    "check": "prepare",
    "fetch": "prepare",
    "evaluate": "evaluate",
    "export": "model",
    "serve": "serve",
    "demo": "model",
    "bench": "bench",
    "compile": "cli",
    "submit": "cli",
    "schedule": "cli",
    "runs": "cli",
    "ui": "pipelines",
    "rollback": "pipelines",
    "votes": "all",
    "checkpoints": "pipelines",
}
ON_THIS_MACHINE = ("kfp", "torch", "diffusers", "cvxpy", "matplotlib", "jinja2", "rapidocr")  # of the stages of marble run
_NAMED_OTHERWISE = {"PIL": "pillow", "google": "protobuf", "yaml": "pyyaml"}


def missing(error: ModuleNotFoundError, arguments: Sequence[str]) -> MarbleError | None:
    """The sentence for a module that one of our extras would have brought; None for any other, which is a bug or the user's own."""
    module = (error.name or "").partition(".")[0]
    return _sentence(module, arguments) if _plain(_NAMED_OTHERWISE.get(module, module)) in _declared() else None


def require(modules: Sequence[str], arguments: Sequence[str]) -> None:
    """Raises MarbleError for the first of the modules that is not installed, before a run has begun in vain."""
    for module in modules:
        if find_spec(module) is None:
            raise _sentence(module, arguments)


def _sentence(module: str, arguments: Sequence[str]) -> MarbleError:
    words = [word for word in arguments if not word.startswith("-")]
    command = words[0] if words else ""
    extra = EXTRAS.get(command, "all")
    return MarbleError(
        f"marble {command} needs the package {_NAMED_OTHERWISE.get(module, module)}, which is not installed: "
        f"pip install 'marble-core[{extra}]'."
    )


def _declared() -> set[str]:
    """All that marble-core requires, with every extra, by the names of PyPI."""
    try:
        return {_plain(re.split(r"[^\w.-]", text, maxsplit=1)[0]) for text in requires("marble-core") or ()}
    except PackageNotFoundError:
        return set()


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
