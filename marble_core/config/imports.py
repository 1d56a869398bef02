"""What a configuration names by its import path: scorers, detectors, balancers, model families, generators of prompts. Imported when it is used."""

from __future__ import annotations

import importlib
import os
from typing import TypeVar

from marble_core.types import MarbleError

T = TypeVar("T")
# Top-level modules that an import path may lead into, with commas, beside this package; * for any. The images set it: on a cluster a
# configuration comes from whoever may start a run, and must not run what else lies in the image. Where it is not set, any may.
MAY_RUN = "MARBLE_MAY_RUN"


def import_class(path: str, what: str) -> type:
    """The class that ``package.module:Class`` names. ``what`` is the field that named it, for the error's sentence."""
    return import_named(path, type, what)


def import_named(path: str, kind: type[T], what: str) -> T:
    """The object of this ``kind`` that ``package.module:Name`` names. ``what`` is the field that named it."""
    module_name, colon, name = path.partition(":")
    if not colon or not module_name or not name:
        raise MarbleError(f"{what}: {path!r} is not of the form 'package.module:Class'.")
    _require_allowed(path, what)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise MarbleError(f"{what}: {path!r} cannot be imported: {error}; install it or correct the name.") from error
    found = getattr(module, name, None)
    if not isinstance(found, kind):
        raise MarbleError(f"{what}: the module {module_name!r} has no {'class' if kind is type else kind.__name__} {name!r}.")
    return found


def _require_allowed(path: str, what: str) -> None:
    allowed = [name for name in os.environ.get(MAY_RUN, "*").split(",") if name]
    if "*" not in allowed and path.partition(":")[0].partition(".")[0] not in ("marble_core", *allowed):
        raise MarbleError(
            f"{what}: {path!r} may not be run here, for {MAY_RUN} allows {', '.join(['marble_core', *allowed])}; build the images with "
            "make images EXTRA=..., the directory of its package."
        )
