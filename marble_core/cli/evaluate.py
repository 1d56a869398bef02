"""The command that evaluates a model outside of a run: evaluate."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marble_core.cli.options import ROOT, File, Preset, Set, load
from marble_core.cli.servers import mlflow_of_runs

if TYPE_CHECKING:
    from marble_core.config.schema import RunConfig

OUT = ROOT / "published"
LABEL = re.compile(r"[A-Za-z][\w.-]{0,29}")  # it names images too


def evaluate(
    published: Annotated[
        bool, typer.Option("--published", help="With the published solver and steps, beside the paper's table.")
    ] = False,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="A LoRA, whoever made it: a directory, a file, an address or models:/NAME@ALIAS. LABEL= before it names its row. "
            "May be repeated. Default: the base alone."
        ),
    ] = None,
    preset: Preset = "demo",
    config: File = None,
    set_: Set = None,
    limit: Annotated[int, typer.Option(min=0, help="Prompts of each source, evenly from its file. 0: all.")] = 0,
    out: Annotated[Path, typer.Option(help="Where published.json and the images go.")] = OUT,
) -> None:
    """Measure the base model and LoRAs with every reward, on the prompts of data.evaluation.

    All draw the same prompts from the same noise, and stand in one table. Each setting of evaluation.roles adds a row for the base, or
    for each LoRA. No row has guidance, except the roles that ask for it.

    The test sets are files: --set data.evaluation.general=drawbench.txt, .ocr and .geneval likewise. Without --published the
    configuration's own solver and steps are used.
    """
    settings, _ = load(preset, config, set_)
    from marble_core.evaluation.paper_table import as_published
    from marble_core.runtime.scratch import scratch_directory
    from marble_core.tracking.registry import fetch_adapter

    given = labelled(adapter or ())
    with ExitStack() as stack:
        if any(uri.startswith("models:/") for uri in given.values()):
            stack.enter_context(mlflow_of_runs())
        places = {label: fetch_adapter(uri, stack.enter_context(scratch_directory())) for label, uri in given.items()}
        _measure(as_published(settings) if published else settings, published, places, given, limit, out)


def labelled(adapters: Sequence[str]) -> dict[str, str]:
    """Where each LoRA lies, by its label: what stands before the first =, else the end of where it lies. Raises MarbleError."""
    from marble_core.types import MarbleError

    found: dict[str, str] = {}
    for given in adapters:
        label, separator, uri = given.partition("=")
        if not separator or not LABEL.fullmatch(label) or Path(given).exists():
            label, uri = "-".join(re.findall(r"[\w.]+", given)[-2:])[-30:], given
        if not uri or label in found or label == "base":
            raise MarbleError(f"--adapter {given!r}: give each LoRA a label of its own, as in --adapter mine=DIRECTORY.")
        found[label] = uri
    return found


def _measure(
    settings: RunConfig, published: bool, places: Mapping[str, Path], given: Mapping[str, str], limit: int, out: Path
) -> None:
    import json
    import shutil
    from dataclasses import asdict

    import torch  # noqa: F401 - a missing extra is said before anything else
    from rich.console import Console

    from marble_core.estimate import check_fits
    from marble_core.evaluation import lacking
    from marble_core.evaluation.paper_table import COLUMNS, ROWS, differences, lines, read_test_sets, row_of, set_names
    from marble_core.evaluation.run import measure
    from marble_core.rewards.applies import check_named, check_prompts, unplaced
    from marble_core.rewards.cards import cards_of
    from marble_core.runtime.progress_display import displayed

    check_named(settings.measured)
    check_fits(settings, cards := cards_of(settings.measured))
    prompts = read_test_sets(settings, limit)
    check_prompts(settings, {"evaluation": unplaced(prompts)}, cards)
    out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, stderr=True)
    console.print(f"Loading {settings.model.path} and {len(settings.measured)} rewards ...", markup=False)
    with displayed(console):
        tables, found = measure(settings, prompts, places, out)
    lost = lacking.lacking(tables)
    paired = dict(zip(tables, lacking.paired(list(tables.values())), strict=True))
    names = {role: f"ours, {role}" for role in tables}
    ours = {names[role]: row_of(table, prompts) for role, table in paired.items()}
    sides = {names[role]: table.side_means() for role, table in paired.items()}
    rows = ROWS if published else {}
    notes = [*(differences(settings, prompts) if published else []), *lacking.notes(lost)]
    record = {
        "settings": found,
        "adapters": dict(given),
        "ours": {name: {reward: asdict(number) for reward, number in row.items()} for name, row in ours.items()},
        "beside": sides,
        "published": {name: dict(zip([c.reward for c in COLUMNS], row, strict=True)) for name, row in rows.items()},
        "differences": notes,
    }
    (out / "published.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for line in lines(ours, rows, set_names(settings, prompts), shutil.get_terminal_size().columns):
        print(line)
    for name, side in sides.items():
        if side:
            print(f"{name}, beside: " + ", ".join(f"{value} {mean:.3f}" for value, mean in side.items()))
    shown = ("model", "solver", "steps", "guidance_scale", "width", "height", "precision", "noise_seed")
    counts = ", ".join(f"{count} {source}" for source, count in found["prompts"].items())
    print(f"Settings: {', '.join(f'{key} {found[key]}' for key in shown)}; prompts: {counts}")
    print(f"All of it: {out / 'published.json'}")
    for note in notes:
        print(f"Note: {note}")
