"""Prompts by their uri: a file, here or elsewhere, the synthetic world's, or made by a generator."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import FunctionType

from marble_core.config.imports import import_named
from marble_core.prompts.generate import generate
from marble_core.prompts.reading import read
from marble_core.storage.artifacts import Part
from marble_core.storage.uri import SCHEMES, resolve
from marble_core.types import MarbleError, Placed, Prompt

DEMO = "demo://prompts/"
GENERATE = "generate://"
DEMO_PROMPTS = "marble_core.demo.prompts:generate"  # the demo's world lies above the prompts


def is_made(uri: str) -> bool:
    """Whether the prompts are made for the run, in a number that the configuration gives, and not read."""
    return uri.startswith((DEMO, GENERATE))


def load(uri: str, source: str, size: int, seed: int, held_out: bool, avoid: Collection[Prompt] = ()) -> list[Placed]:
    """The prompts of one source.

    A file, local or named as assets.py has it (``s3://``, ``https://``), is read whole. Of ``demo://prompts/<kind>`` and
    ``generate://<kind>`` ``size`` prompts are drawn from ``seed``, from the held-out side if ``held_out``; generated ones
    differ from those of ``avoid``.
    Raises MarbleError for a uri or a file that holds prompts of another source, and as ``read`` does.
    """
    if is_made(uri):
        if uri.startswith(DEMO):
            draw = import_named(DEMO_PROMPTS, FunctionType, uri)
            made = draw(uri.removeprefix(DEMO), size, seed, held_out)
        else:
            made = generate(uri.removeprefix(GENERATE), size, seed, held_out, avoid)
        named = (prompt if prompt.source == source else replace(prompt, source=source) for prompt in made)
        return [Placed(prompt, f"{uri}, prompt {number}") for number, prompt in enumerate(named, 1)]
    placed = read(local_file(uri), source, shown(uri))
    if stray := next((p for p in placed if p.prompt.source != source), None):
        raise MarbleError(f"{stray.where}: a prompt of {stray.prompt.source!r}, but the file is configured as {source!r}.")
    return placed


def local_file(uri: str) -> Path:
    """The file on this machine: what is named by a scheme of assets.py is brought into the model cache. Raises MarbleError."""
    if uri.startswith(SCHEMES):
        return resolve(uri, Part.FILE)
    if "://" in uri:
        raise MarbleError(
            f"{uri!r} is neither a file nor of a known kind; write s3://, https://, demo://prompts/ or generate://."
        )
    return Path(uri).expanduser()


def shown(uri: str) -> str:
    """The uri for people: a query may hold a signature."""
    return uri.partition("?")[0] if uri.startswith(("https://", "http://")) else uri
