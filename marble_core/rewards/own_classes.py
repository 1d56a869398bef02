"""Classes of the user's own that a configuration names by import path, looked for before a GPU is asked for. No torch here.

They are imported in a child process with a time limit: an import may hang, crash, take the GPU, or start threads. Where torch is not
installed, as in prepare's image, train and evaluate have packages that are not here either; what lacks one is then not checked, and
that is said.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from marble_core.config.imports import import_class
from marble_core.config.schema import ModelConfig, RunConfig
from marble_core.rewards.geneval.vocabulary import PLUGINS
from marble_core.rewards.registry import SCORER, SCORERS, check_call, require_members
from marble_core.runtime.scratch import scratch_directory
from marble_core.types import MarbleError

LIMIT = 120.0  # seconds; importing torch alone takes some
_OURS = "marble_core."
_BALANCER = ("needs_gram", "weigh", "between", "state", "load_state")
_CHILD = "import sys; from marble_core.rewards.own_classes import look; look(*sys.argv[1:])"


@dataclass(frozen=True)
class Named:
    """A class, where it is named, the options that it will be constructed with (None: otherwise), and what it must have."""

    path: str
    what: str
    options: Mapping[str, Any] | None = None
    members: tuple[str, ...] = ()


def named_by(config: RunConfig) -> list[Named]:
    """The classes that a configuration names by import path, without those of this package that its defaults name."""
    found = []
    for reward in config.measured:
        what = f"The reward {reward.name!r}"
        if reward.scorer:
            found.append(Named(reward.scorer, what, reward.options, SCORER))
        if (reward.scorer or SCORERS.get(reward.name)) == SCORERS["geneval"]:
            for key, member in PLUGINS.items():
                options = reward.options.get(f"{key}_options") or {}
                if isinstance(path := reward.options.get(key), str) and isinstance(options, dict):
                    found.append(Named(path, f"The {key} of {what[0].lower()}{what[1:]}", options, (member,)))
    if config.balance.is_own:
        found.append(Named(config.balance.method, "balance.method", None, _BALANCER))
    if config.model.family != ModelConfig().family:
        found.append(Named(config.model.family, "model.family", None, ("encode", "velocity", "decode")))
    return [one for one in found if not one.path.startswith(_OURS)]


def check_own_classes(config: RunConfig, limit: float = LIMIT) -> list[str]:
    """A sentence for each class that could not be checked here. Raises MarbleError for one that is not there, does not take its
    options, or is none of its kind."""
    named = named_by(config)
    if not named:
        return []
    with scratch_directory() as scratch:
        asked, report = scratch / "asked.json", scratch / "report.jsonl"
        asked.write_text(json.dumps([asdict(one) for one in named]), encoding="utf-8")
        code = _run_child(asked, report, limit)
        said = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()] if report.exists() else []
    whole = find_spec("torch") is not None  # what train and evaluate can import is here
    warnings = [sentence for one, found in zip(named, said, strict=False) if (sentence := _judged(one, found, whole))]
    if len(said) < len(named):
        one = named[len(said)]
        if code is not None:
            raise MarbleError(f"{one.what}: importing {one.path!r} ended the process that imported it, with exit code {code}.")
        late = ", ".join(repr(rest.path) for rest in named[len(said) :])
        warnings.append(f"{one.what}: importing {one.path!r} did not end within {limit:g} s, so not checked were {late}.")
    return warnings


def _judged(one: Named, found: Mapping[str, str], whole: bool) -> str | None:
    """None where all is well. Raises MarbleError where it would not be on a GPU either."""
    if "error" in found:
        raise MarbleError(found["error"])
    if "lacks" in found and not whole:
        return (
            f"{one.what}: {one.path!r} was not checked, for the module {found['lacks']!r} is not installed here; "
            "see that the images of train and evaluate hold it (make images EXTRA=...)."
        )
    if "lacks" in found:
        raise MarbleError(
            f"{one.what}: {one.path!r} cannot be imported: there is no module {found['lacks']!r}; install it, put its directory on "
            "PYTHONPATH, or correct the name."
        )
    return None


def _run_child(asked: Path, report: Path, limit: float) -> int | None:
    """Its exit code; None where it was ended after ``limit`` seconds. It finds modules where this process does, has no GPU, and what it
    prints goes nowhere."""
    places = [*filter(None, [os.environ.get("PYTHONPATH")]), *(place or os.getcwd() for place in sys.path)]
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", _CHILD, str(asked), str(report)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(places)},
    )
    try:
        return child.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # what it started too
        child.wait()


def look(asked: str, report: str) -> None:
    """In the child: a line of ``report`` for each class of ``asked``, as soon as it is known."""
    named = [Named(**one) for one in json.loads(Path(asked).read_bytes())]
    with open(report, "w", encoding="utf-8") as file:
        for one in named:
            file.write(json.dumps(_found(one)) + "\n")
            file.flush()


def _found(one: Named) -> dict[str, str]:
    """Empty where the class is there and fits; ``error`` has a sentence, ``lacks`` the name of a module that is not installed."""
    try:
        cls = import_class(one.path, one.what)
        if one.options is not None:
            check_call(cls, one.options, one.what)
        require_members(cls, one.members, one.what)
    except MarbleError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            return {"lacks": cause.name}
        return {"error": str(error)}
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is the user's module
        return {"error": f"{one.what}: importing {one.path!r} failed: {type(error).__name__}: {error}."}
    return {}
