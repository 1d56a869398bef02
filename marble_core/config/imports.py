"""What a configuration names by its import path: scorers, detectors, balancers, model families. Imported when it is used."""

from __future__ import annotations

import importlib

from marble_core.types import MarbleError


def import_class(path: str, what: str) -> type:
    """The class that ``package.module:Class`` names. ``what`` is the field that named it, for the error's sentence."""
    module_name, colon, class_name = path.partition(":")
    if not colon or not module_name or not class_name:
        raise MarbleError(f"{what}: {path!r} is not of the form 'package.module:Class'.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise MarbleError(f"{what}: {path!r} cannot be imported: {error}; install it or correct the name.") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise MarbleError(f"{what}: the module {module_name!r} has no class {class_name!r}.")
    return found
