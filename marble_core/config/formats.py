"""The versions of the files that outlive the code that wrote them, and how an older one becomes one of this version.

Each such file says ``"format": N``. One without it was written before there were versions and is of version 0. A file of this
version is read; an older one is migrated, a version at a time; what has no migration is refused in a sentence. Whoever takes a key
from the configuration, or renames one, raises the version and adds the function that drops or renames it: what was written yesterday
must stay readable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marble_core import __version__
from marble_core.types import MarbleError

KEY = "format"
Tree = dict[str, Any]
Migration = Callable[[Tree], Tree]


@dataclass(frozen=True)
class Format:
    """``version`` is what this code writes; ``migrations`` lead from version N to N + 1; ``remedy`` ends the sentence of a refusal."""

    name: str
    version: int
    remedy: str
    migrations: Mapping[int, Migration] = field(default_factory=dict)

    def stamp(self, tree: Mapping[str, Any]) -> Tree:
        """The tree with this version as its first key."""
        return {KEY: self.version, **tree}

    def stamp_json(self, data: bytes | str, indent: int | None = None) -> str:
        """The same of a JSON object; without ``indent`` on one line."""
        tight = (",", ":") if indent is None else None
        return json.dumps(self.stamp(json.loads(data)), indent=indent, separators=tight, ensure_ascii=False)

    def upgrade(self, tree: Tree, where: str | Path) -> Tree:
        """A tree of any version as one of this version, without the key. Raises MarbleError where there is no way from there."""
        found = tree.get(KEY, 0)
        if type(found) is not int or found < 0:
            raise MarbleError(f"{where} has the format {found!r:.40}, which is no version of {self.name}: {self.remedy}.")
        if found > self.version:
            raise MarbleError(
                f"{where} has version {found} of {self.name}, and MARBLE {__version__} reads up to {self.version}: "
                "use the MARBLE that wrote it, or a later one."
            )
        tree = {key: value for key, value in tree.items() if key != KEY}
        for version in range(found, self.version):
            if version not in self.migrations:
                raise MarbleError(
                    f"{where} has version {found} of {self.name}, which MARBLE {__version__} cannot read any more: {self.remedy}."
                )
            tree = self.migrations[version](tree)
        return tree

    def upgrade_json(self, data: bytes, where: str | Path) -> bytes:
        """The same of a file's bytes. What is no JSON object is left to whoever validates it."""
        try:
            tree = json.loads(data)
        except (ValueError, RecursionError):
            return data
        return json.dumps(self.upgrade(tree, where)).encode() if isinstance(tree, dict) else data


def unchanged(tree: Tree) -> Tree:
    """From version 0, which differs in nothing but that it does not say so."""
    return tree


def dropped(*keys: str) -> Migration:
    """A migration that takes out keys by their dotted names; one that is not there is no matter."""

    def migrate(tree: Tree) -> Tree:
        for key in keys:
            tree = _without(tree, key.split("."))[0]
        return tree

    return migrate


def renamed(before: str, now: str) -> Migration:
    """A migration that moves a value from one dotted name to another, which need not be in the same section."""

    def migrate(tree: Tree) -> Tree:
        tree, found = _without(tree, before.split("."))
        return _with(tree, now.split("."), found[0]) if found else tree

    return migrate


def _without(tree: Tree, path: list[str]) -> tuple[Tree, list[Any]]:
    """A copy without the key at the end of ``path``, and its value in a list; an empty list where it is not there."""
    first, *rest = path
    if first not in tree or (rest and not isinstance(tree[first], dict)):
        return tree, []
    if not rest:
        return {key: value for key, value in tree.items() if key != first}, [tree[first]]
    inner, found = _without(tree[first], rest)
    return {**tree, first: inner}, found


def _with(tree: Tree, path: list[str], value: Any) -> Tree:
    first, *rest = path
    return {**tree, first: _with(tree.get(first) or {}, rest, value) if rest else value}


# Raise a version with every change that this code could not read, or that older code would read wrongly.
CONFIGURATION = Format("the configuration", 1, "write it anew with marble init, or start a new run", {0: unchanged})
CHECKPOINT = Format(
    "a checkpoint", 2, "start with another run id", {0: unchanged, 1: unchanged}
)  # manifest.json, state.json; 2: shared files
EVALUATION = Format("an evaluation", 1, "run the evaluate stage again", {0: unchanged})
PIPELINE = Format("the compiled pipeline", 4, "compile it anew with marble compile")  # 4: prepare hands on CPUs and memory
DECISION = Format("a decision", 1, "run the evaluate stage again")
LOOK = Format("a look", 1, "remove the file: the run looks anew")  # a line of watch.jsonl
CELL = Format("a study's cell", 1, "remove it to have it made again", {0: unchanged})


def check_pipeline(stated: str) -> None:
    """``stated`` is the version that the pipeline file gave this stage, empty where no pipeline file runs it. Raises MarbleError."""
    if not stated:
        return
    version = int(stated) if re.fullmatch(r"\d{1,6}", stated) else stated
    PIPELINE.upgrade({KEY: version}, "The pipeline file")
