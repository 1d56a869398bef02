"""The classes and colours that a detector can name, read from its source: prepare has neither torch nor the detector's packages.

A detector says them in the class attribute ``classes``, a colour classifier in ``color_names``: strings in a tuple, list or set, the
keys of a dict, names of such values in this module or the one that they are imported from, and ``*`` of them. Nothing is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

MASK2FORMER, CLIP_COLORS = (
    "marble_core.rewards.geneval.mask2former:Mask2Former",
    "marble_core.rewards.geneval.colors:ClipColors",
)
PLUGINS = {"detector": "detect", "colors": "colors"}  # options that name a class, and what it must have
COPIES = ("tuple", "list", "set", "frozenset", "sorted")  # calls that keep the strings


@dataclass(frozen=True)
class Vocabulary:
    """What the reward can name; None where its classes do not say. ``unsaid`` has a sentence for each of those, by a wish's key."""

    classes: tuple[str, ...] | None
    colors: tuple[str, ...] | None
    unsaid: dict[str, str]


def vocabulary(options: Mapping[str, Any]) -> Vocabulary:
    """Of the reward geneval with these options."""
    detector = str(options.get("detector") or MASK2FORMER)
    unsaid = {}
    classes = _said(detector, "classes")
    if classes is None:
        unsaid["class"] = _sentence("classes", detector, "classes", '("cup", "dog")')
    painter = str(options["colors"]) if options.get("colors") else _names_colors(detector)
    colors = _said(painter, "color_names") if painter else None
    if colors is None:
        unsaid["color"] = _sentence("colours", painter or detector, "color_names", '("red", "blue")')
    return Vocabulary(classes, colors, unsaid)


def _sentence(what: str, path: str, attribute: str, example: str) -> str:
    return (
        f"The {what} that prompts for 'geneval' ask for were not checked, because the source of {path!r} does not say which it "
        f"knows. Give that class the attribute {attribute} = {example}, with all that it knows."
    )


class _Unreadable(Exception):
    """The source does not say, or is not there."""


def _said(path: str, attribute: str) -> tuple[str, ...] | None:
    try:
        module, cls = _class(path)
        found = _member(module, cls, attribute)
        return None if found is None or isinstance(found[1], ast.FunctionDef) else tuple(_strings(*found))
    except (_Unreadable, RecursionError):
        return None


def _names_colors(detector: str) -> str | None:
    """Whose ``colors`` names the colours: the detector's own, else CLIP; None where the source leaves that open."""
    try:
        return CLIP_COLORS if _member(*_class(detector), "colors") is None else detector
    except (_Unreadable, RecursionError):
        return None


def _class(path: str) -> tuple[str, ast.ClassDef]:
    module, _, name = path.partition(":")
    return _as_class(*_definition(module, name))


def _as_class(module: str, node: ast.AST) -> tuple[str, ast.ClassDef]:
    if not isinstance(node, ast.ClassDef):
        raise _Unreadable
    return module, node


def _member(module: str, cls: ast.ClassDef, name: str) -> tuple[str, ast.AST] | None:
    """A class attribute's value, or a method, of the class or its bases; None where there is none. What a method assigns to
    ``self`` is not known before it runs."""
    for node in ast.walk(cls):
        if isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Store):
            raise _Unreadable
    if own := _assigned(cls.body, name):
        return module, own
    for base in cls.bases:
        if isinstance(base, ast.Name) and base.id == "object":
            continue
        if not isinstance(base, ast.Name):
            raise _Unreadable
        if found := _member(*_as_class(*_definition(module, base.id)), name):
            return found
    return None


def _definition(module: str, name: str) -> tuple[str, ast.AST]:
    """A name's class or value, and the module that it stands in, which may be the one that it is imported from."""
    spec, tree = _parsed(module)
    if found := _assigned(tree.body, name):
        return module, found
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    package = module if spec.submodule_search_locations is not None else module.rpartition(".")[0]
                    source = "." * node.level + (node.module or "")
                    return _definition(resolve_name(source, package) if node.level else source, alias.name)
    raise _Unreadable


def _assigned(body: list[ast.stmt], name: str) -> ast.AST | None:
    """What the name stands for at the end of these statements: a value, a class or a function."""
    for node in reversed(body):
        match node:
            case ast.Assign(targets=targets, value=value) if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                return value
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value) if target == name:
                return value
            case ast.ClassDef(name=target) | ast.FunctionDef(name=target) if target == name:
                return node
    return None


def _strings(module: str, node: ast.AST) -> list[str]:
    match node:
        case ast.Constant(value=str() as text):
            return [text]
        case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
            return [text for element in elements for text in _strings(module, element)]
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return [text for key, value in pairs for text in _strings(module, value if key is None else key)]
        case ast.Starred(value=value):
            return _strings(module, value)
        case ast.Name(id=name):
            return _strings(*_definition(module, name))
        case ast.Call(func=ast.Name(id=called), args=[argument], keywords=[]) if called in COPIES:
            return _strings(module, argument)
    raise _Unreadable


@cache
def _parsed(module: str) -> tuple[ModuleSpec, ast.Module]:
    """A module's source, found without importing the packages that it lies in."""
    try:
        first, *rest = module.split(".")
        spec, name = find_spec(first), first
        for part in rest:
            name += f".{part}"
            spec = PathFinder.find_spec(name, spec.submodule_search_locations) if spec else None
        if spec is None or spec.origin is None:
            raise _Unreadable
        return spec, ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (ImportError, ValueError, OSError, SyntaxError):
        raise _Unreadable from None
