"""Evaluation as published: the paper's table, the settings it was measured with, and rows of ours beside it. No torch at import.

Source: MARBLE (arXiv 2605.06507), SD3.5-Medium at 512 x 512; docs/algorithm.md, section 10.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from marble_core.config.schema import RunConfig
from marble_core.types import Prompt, RewardTable, in_order

SOLVER, STEPS, SIDE = "euler", 40, 512
MODEL = "stabilityai/stable-diffusion-3.5-medium"
Z_95 = 1.96
LONGEST = 10  # letters of a file's name, as the name of its prompts


@dataclass(frozen=True)
class Column:
    """A column of the table: the reward in the unit of the table (``scale`` times ours), over the prompts of one test set."""

    reward: str
    heading: str
    source: str
    scale: float = 1.0


COLUMNS = (
    Column("geneval", "GenEval", "geneval"),
    Column("ocr", "OCR", "ocr"),
    Column("pickscore", "PickScore", "general", 26.0),  # the raw logit
    Column("clipscore", "CLIPScore", "general"),
    Column("hpsv2", "HPSv2.1", "general"),
    Column("aesthetic", "Aesthetic", "general"),
    Column("imagereward", "ImgReward", "general"),
    Column("unifiedreward", "UniReward", "general", 5.0),  # marks from 1 to 5
)
TEST_SETS: Mapping[str, str] = {"general": "DrawBench", "ocr": "OCR", "geneval": "GenEval"}
TEXTS: Mapping[str, int] = {"general": 200, "ocr": 1018, "geneval": 553}  # of the published files
ROWS: Mapping[str, tuple[float, ...]] = {  # in the order of COLUMNS
    "no CFG": (0.24, 0.12, 20.51, 0.237, 0.204, 5.13, -0.58, 2.02),
    "with CFG": (0.63, 0.59, 22.34, 0.285, 0.279, 5.36, 0.85, 3.03),
    "NFT sequential": (0.94, 0.91, 23.80, 0.293, 0.331, 6.01, 1.49, 3.49),
    "NFT weighted sum": (0.92, 0.91, 21.53, 0.267, 0.300, 6.15, 1.16, 3.04),
    "fixed alpha 0.2": (0.86, 0.89, 22.64, 0.272, 0.346, 6.55, 1.45, 3.42),
    "MARBLE": (0.94, 0.96, 22.83, 0.286, 0.355, 6.59, 1.53, 3.52),
}


@dataclass(frozen=True)
class Measured:
    """One number of ours in the table's unit: the mean over ``n`` images, and the half width of its 95 % interval over texts (None
    where there is only one)."""

    mean: float
    half_width: float | None
    n: int


def as_published(config: RunConfig) -> RunConfig:
    """The configuration with the solver and the steps of the table, and nothing measured that is not in it."""
    evaluation = config.evaluation.model_copy(update={"solver": SOLVER, "steps": STEPS, "diversity_prompts": 0})
    return config.model_copy(update={"evaluation": evaluation})


def read_test_sets(config: RunConfig, limit: int = 0) -> list[Prompt]:
    """The prompts of ``data.evaluation``, as they are: a text that a file repeats is drawn as often, each time from other noise.

    With ``limit``, so many of each source, evenly from the whole file. Raises MarbleError for a file that cannot be read.
    """
    from marble_core.prompts.sources import load

    data, prompts = config.data, []
    for source in in_order(data.evaluation):
        own = [p.prompt for p in load(data.evaluation[source], source, data.evaluation_size, config.seed, held_out=True)]
        wanted = min(limit, len(own)) or len(own)
        prompts += [own[i * len(own) // wanted] for i in range(wanted)]
    return prompts


def row_of(table: RewardTable, prompts: Sequence[Prompt]) -> dict[str, Measured]:
    """Our number for every column whose reward was measured on prompts of its test set."""
    found = {}
    for column in COLUMNS:
        if column.reward not in table.names:
            continue
        values_N = table.R_NK[:, table.names.index(column.reward)] * column.scale
        chosen = [i for i, p in enumerate(prompts) if p.source == column.source and not np.isnan(values_N[i])]
        if chosen:
            found[column.reward] = _measured(values_N[chosen], [prompts[i].text for i in chosen])
    return found


def _measured(values_N: np.ndarray, texts: Sequence[str]) -> Measured:
    """Images of one text say little more than one does, so the interval is over texts."""
    own: dict[str, list[float]] = {}
    for text, value in zip(texts, values_N.tolist(), strict=True):
        own.setdefault(text, []).append(value)
    means = [np.mean(values) for values in own.values()]
    error = float(np.std(means, ddof=1)) / len(means) ** 0.5 if len(means) > 1 else None
    return Measured(float(values_N.mean()), None if error is None else Z_95 * error, len(texts))


def set_names(config: RunConfig, prompts: Sequence[Prompt]) -> dict[str, str]:
    """What the prompts of each source are: demo, generated, a published test set by its name, or the beginning of their file's."""
    texts = Counter(source for source, _ in {(p.source, p.text) for p in prompts})
    return {source: _set_name(uri, source, texts[source]) for source, uri in config.data.evaluation.items()}


def _set_name(uri: str, source: str, texts: int) -> str:
    for beginning, name in (("demo://", "demo"), ("generate://", "generated")):
        if uri.startswith(beginning):
            return name
    if TEXTS.get(source) == texts:
        return TEST_SETS[source]
    return PurePosixPath(uri.split("?")[0]).stem[:LONGEST] or source[:LONGEST]


def lines(
    ours: Mapping[str, Mapping[str, Measured]],
    published: Mapping[str, Sequence[float]],
    sets: Mapping[str, str],
    width: int = 80,
) -> Iterator[str]:
    """The table as text, in blocks of no more than ``width``: the published rows, and ours with their intervals below them.

    Without published rows only what was measured is a column. ``sets`` are ``set_names``.
    """
    label = max(map(len, [*published, *ours, "published prompts"]))
    cell = max(11, *(len(name) + 2 for name in sets.values()))
    wanted = [k for k, column in enumerate(COLUMNS) if published or any(column.reward in row for row in ours.values())]
    each = max(1, (width - label) // cell)
    for start in range(0, len(wanted), each):
        yield from _block(ours, published, sets, wanted[start : start + each], label, cell)
        if start + each < len(wanted):
            yield ""


def _block(
    ours: Mapping[str, Mapping[str, Measured]],
    published: Mapping[str, Sequence[float]],
    sets: Mapping[str, str],
    columns: Sequence[int],
    label: int,
    cell: int,
) -> Iterator[str]:
    def line(name: str, values: Iterable[object]) -> str:
        return f"{name:{label}}" + "".join(f"{value:>{cell}}" for value in values)

    own = [COLUMNS[k] for k in columns]
    yield line("", [column.heading for column in own])
    if published:
        yield line("published prompts", [TEST_SETS[column.source] for column in own])
    for name, numbers in published.items():
        yield line(name, [f"{numbers[k]:g}" for k in columns])
    yield line("our prompts" if published else "prompts", [sets.get(column.source, "-") for column in own])
    for name, row in ours.items():
        yield line(name, [_number(row, column, "mean") for column in own])
        yield line("  95 %: +-", [_number(row, column, "half_width") for column in own])
        yield line("  images", [_number(row, column, "n") for column in own])


def _number(row: Mapping[str, Measured], column: Column, what: str) -> str:
    value = getattr(row[column.reward], what) if column.reward in row else None
    return "-" if value is None else f"{value:.4g}"


def differences(config: RunConfig, prompts: Sequence[Prompt]) -> list[str]:
    """Why a row of ours may not be compared with the published ones, a sentence each."""
    m, said = config.model, []
    if m.path.removeprefix("hf://").partition("@")[0] != MODEL:
        said.append(f"The published rows are of {MODEL}, and ours of {m.path}.")
    if (m.height, m.width) != (SIDE, SIDE):
        said.append(f"The published images have {SIDE} x {SIDE} pixels, ours {m.width} x {m.height}.")
    made = [s for s, uri in config.data.evaluation.items() if uri.startswith(("demo://", "generate://"))]
    if made:
        said.append(f"The prompts of {', '.join(made)} are not the published ones: name their files as data.evaluation.SOURCE.")
    have = Counter(source for source, _ in {(p.source, p.text) for p in prompts})
    said += [
        f"{TEST_SETS[s]} has {n} texts, and ours are {have[s]}." for s, n in TEXTS.items() if have[s] != n and s not in made
    ]
    names = {reward.name for reward in config.measured}
    if missing := [column.reward for column in COLUMNS if column.reward not in names]:
        said.append(f"Not measured: {', '.join(missing)}; list what you want in evaluation.rewards.")
    odd = [r.name for r in config.measured if r.scorer or "checkpoint" in r.options or "detector" in r.options]
    if odd:
        said.append(f"The networks of {', '.join(odd)} are other ones than the paper's.")
    return said
