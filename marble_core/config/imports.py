"""What a configuration names by its import path: scorers, detectors, balancers, model families, generators of prompts. Imported when it is used."""

from __future__ import annotations

import importlib
from typing import TypeVar

from marble_core.types import MarbleError

T = TypeVar("T")


def import_class(path: str, what: str) -> type:
    """The class that ``package.module:Class`` names. ``what`` is the field that named it, for the error's sentence."""
    return import_named(path, type, what)


def import_named(path: str, kind: type[T], what: str) -> T:
    """The object of this ``kind`` that ``package.module:Name`` names. ``what`` is the field that named it."""
    module_name, colon, name = path.partition(":")
    if not colon or not module_name or not name:
        raise MarbleError(f"{what}: {path!r} is not of the form 'package.module:Class'.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise MarbleError(f"{what}: {path!r} cannot be imported: {error}; install it or correct the name.") from error
    found = getattr(module, name, None)
    if not isinstance(found, kind):
        raise MarbleError(f"{what}: the module {module_name!r} has no {'class' if kind is type else kind.__name__} {name!r}.")
    return found
