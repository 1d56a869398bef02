"""The prompts that a run is watched by while it trains: held out from training, and others than the evaluation's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from marble_core.config.schema import RunConfig
from marble_core.prompts.filters import normal
from marble_core.prompts.reading import read_prompts
from marble_core.prompts.sources import is_made, load
from marble_core.runtime.seeding import derive
from marble_core.types import Placed, Prompt, in_order

MOST = 4  # the watch takes at most one of so many prompts of a file
DRAWN = 8  # prompts made for each one wanted: some are the evaluation's, some come twice

Clean = Callable[[str, str, list[Placed]], Sequence[Placed]]


def split_watched(
    config: RunConfig, evaluation: Sequence[Placed], trained: Sequence[Placed], clean: Clean
) -> tuple[list[Placed], list[Placed]]:
    """The prompts to watch, ``watch.prompts`` of each source, and those of ``evaluation`` that remain.

    Where a source's prompts are made for the run, to train on or to evaluate, more are made from the held-out side, and the
    evaluation keeps all of its own. Of a file the watch takes prompts, evenly spaced and at most a quarter of them, which the
    evaluation then leaves out.
    """
    if not config.watch.every:
        return [], list(evaluation)
    watched: list[Placed] = []
    taken = {normal(p.prompt.text) for p in (*evaluation, *trained)}
    for source in in_order([*config.data.train, *config.data.evaluation]):
        specs = [spec[source] for spec in (config.data.train, config.data.evaluation) if source in spec]
        if source in config.data.evaluation:
            made = next((uri for uri in specs if is_made(uri)), None)
            own = _made(config, made, source, taken, clean) if made else []
            watched += own or _of_file([p for p in evaluation if p.prompt.source == source], config.watch.prompts)
    texts = {normal(p.prompt.text) for p in watched}
    return watched, [p for p in evaluation if normal(p.prompt.text) not in texts]


def read_watched(path: Path) -> list[Prompt]:
    """What prepare wrote; none where nothing is watched."""
    return read_prompts(path) if path.read_text(encoding="utf-8").strip() else []


def _made(config: RunConfig, uri: str, source: str, taken: set[str], clean: Clean) -> list[Placed]:
    """New ones alone; fewer where the world has no more, none where it has none."""
    found = load(uri, source, DRAWN * config.watch.prompts, derive(config.seed, "watch"), held_out=True)
    new = {normal(p.prompt.text): p for p in reversed(clean(source, uri, found)) if normal(p.prompt.text) not in taken}
    return list(reversed(new.values()))[: config.watch.prompts]


def _of_file(prompts: Sequence[Placed], wanted: int) -> list[Placed]:
    firsts = list({normal(p.prompt.text): p for p in reversed(prompts)}.values())[::-1]
    count = min(wanted, len(firsts) // MOST)
    return [firsts[i * len(firsts) // count] for i in range(count)]
