"""Prompts by their uri: a file, a file in S3, the synthetic world's, or made by a generator."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from marble_core.prompts.generate import generate
from marble_core.prompts.reading import Placed, read
from marble_core.types import MarbleError, Prompt

DEMO = "demo://prompts/"
GENERATE = "generate://"
S3_SCHEME = "s3://"


def is_made(uri: str) -> bool:
    """Whether the prompts are made for the run, in a number that the configuration gives, and not read."""
    return uri.startswith((DEMO, GENERATE))


def load(uri: str, source: str, size: int, seed: int, held_out: bool, avoid: Collection[Prompt] = ()) -> list[Placed]:
    """The prompts of one source.

    A file, local or ``s3://bucket/key``, is read whole. Of ``demo://prompts/<source>`` and ``generate://<source>`` ``size``
    prompts are drawn from ``seed``, from the held-out side if ``held_out``; generated ones differ from those of ``avoid``.
    Raises MarbleError for a uri or a file that holds prompts of another source, and as ``read`` does.
    """
    if is_made(uri):
        scheme = DEMO if uri.startswith(DEMO) else GENERATE
        if uri != scheme + source:
            raise MarbleError(f"{uri!r} cannot serve the source {source!r}; write '{scheme}{source}'.")
        if scheme == DEMO:
            from marble_core.demo import prompts as demo

            made = demo.generate(source, size, seed, held_out)
        else:
            made = generate(source, size, seed, held_out, avoid)
        return [Placed(prompt, f"{uri}, prompt {number}") for number, prompt in enumerate(made, 1)]
    with local_file(uri) as path:
        placed = read(path, source, uri)
    if stray := next((p for p in placed if p.prompt.source != source), None):
        raise MarbleError(f"{stray.where}: a prompt of {stray.prompt.source!r}, but the file is configured as {source!r}.")
    return placed


@contextmanager
def local_file(uri: str) -> Iterator[Path]:
    """The file as a local one, which an object in S3 is for as long as the block lasts. Raises MarbleError."""
    if not uri.startswith(S3_SCHEME):
        if "://" in uri:
            raise MarbleError(f"{uri!r} is neither a file nor of a known kind; write s3://, demo://prompts/ or generate://.")
        yield Path(uri).expanduser()
        return
    from marble_core.storage import S3

    bucket, _, key = uri.removeprefix(S3_SCHEME).partition("/")
    if not bucket or not key:
        raise MarbleError(f"{uri!r} names no object in S3; write 's3://bucket/path/prompts.jsonl'.")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / Path(key).name
        S3(bucket).download_file(key, path)
        yield path
