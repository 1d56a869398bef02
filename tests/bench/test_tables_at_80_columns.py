"""What is measured is printed in tables that a terminal of 80 columns does not break: each row is a line, each name is whole."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from commands import run_marble
from marble_core import bench
from marble_core.bench import on_gpu, roofline_table, targets
from marble_core.bench.roofline import PHASES
from marble_core.bench.signal import rules, tables
from marble_core.bench.signal.products import Estimate
from marble_core.cli import checkpoints
from marble_core.cli.kubeflow import print_table
from marble_core.config.loading import load_config
from marble_core.estimate.gpus import GPUS
from marble_core.rewards.registry import SCORERS
from marble_core.runtime.console_table import print_blocks


class Narrow(Console):
    """Of 80 columns; ``rows`` are the lines between a table's rules, cell by cell."""

    def __init__(self, width: int = 80) -> None:
        self.said = io.StringIO()
        super().__init__(file=self.said, width=width, highlight=False)

    @property
    def rows(self) -> list[list[str]]:
        lines = self.said.getvalue().splitlines()
        assert lines and max(map(len, lines)) <= self.width
        return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines if line[:1] in "│┃"]


def estimate(*shape: int) -> Estimate:
    return Estimate(np.full(shape, 0.3456), np.full(shape, 0.0567))


def assert_whole(console: Narrow, first: set[str], headings: set[str]) -> None:
    """Rows are begun by whole names, each heading is there, and no cell was cut or is a line of a broken one."""
    assert {row[0] for row in console.rows} == first
    assert {cell for row in console.rows for cell in row} >= headings
    assert "…" not in console.said.getvalue()


def test_the_tables_of_a_bank_of_many_rewards_keep_every_name_and_number() -> None:
    names, K = tuple(SCORERS), len(SCORERS)
    bank: Any = SimpleNamespace(names=names, K=K)
    energies, cosines, meters, agreement = (Narrow() for _ in range(4))
    tables.show_energies(bank, {key: estimate(K) for key in tables.ENERGIES}, energies)
    assert_whole(energies, {"reward", *names}, set(tables.ENERGIES.values()))
    tables.show_cosines(bank, estimate(K, K), estimate(K, K), cosines)
    assert_whole(cosines, {"reward", *names}, set(names))
    assert sum(cell == "0.35 (0.06)" for row in cosines.rows for cell in row) == K * (K - 1)
    tables.show_meters(bank, {key: estimate(K) for key in tables.METERS}, meters)
    assert_whole(meters, {"reward", *names}, set(tables.METERS.values()))
    one: Any = SimpleNamespace(cosine=estimate(K + 1), gain=estimate(K + 1), alpha=estimate(K), alpha_of_truth=np.full(K, 0.2))
    known, _ = rules.table()
    tables.show_agreement(bank, dict.fromkeys(known, one), range(K), agreement)
    assert_whole(agreement, {"rule", *known}, {*names, "mean", "gain"})


def test_a_table_that_fits_is_one_and_a_narrower_terminal_cuts_it() -> None:
    rows, headings = [("a", "1", "2"), ("b", "3", "4")], ("first", "second", "third")
    wide, narrow = Narrow(), Narrow(22)
    for console in (wide, narrow):
        print_blocks(console, headings, rows, "Title")
    assert wide.rows == [list(headings), *map(list, rows)]
    assert narrow.rows == [["first", "second"], ["a", "1"], ["b", "3"], ["first", "third"], ["a", "2"], ["b", "4"]]
    assert narrow.said.getvalue().count("Title") == 1
    path = Narrow()
    print_blocks(path, headings, [("/a" * 60, "1", "2")])
    assert "".join(row[0] for row in path.rows[1:]) == "/a" * 60 and path.rows[1][1:] == ["1", "2"]


def test_what_balancing_costs_and_its_targets_are_tables_of_80_columns() -> None:
    console = Narrow()
    ratios = {f"{row}, K = 64": 1.234 for row in ("exact", "amortised", "TorchJD's autojac")}
    schedules = ("KL on 1/8", "KL on all", "1/8, recompute each pass", "1/8, one recompute")
    bench._table(console, "whole step / plain weighted-sum step", dict.fromkeys(schedules, ratios))
    assert_whole(console, {"", *ratios}, set(schedules))
    goals = Narrow()
    peaks = dict.fromkeys((0, 65), 10**9)
    counted = [targets.Target(name, 1.3, 1.31) for name in _names_of_targets()]
    bench._goals(goals, [*counted, *targets.memory(peaks, 1000)])
    lines = [line for line in goals.said.getvalue().splitlines() if "reached" in line or "missed" in line]
    assert len(lines) == len(counted) + 1 and max(map(len, lines)) <= 80


def _names_of_targets() -> list[str]:
    """As ``targets.counted`` has them, which needs minutes of counting to be asked."""
    source = Path(targets.__file__).read_text(encoding="utf-8")
    found = re.findall(r'Target\("([^"]+)"', source)
    assert len(found) == 6
    return found


def test_what_a_gpu_takes_is_a_table_of_80_columns() -> None:
    names = ("sampling", "plain step", "exact step, K = 5", "exact step, K = 16")
    found: Any = [
        SimpleNamespace(precision=p, images=18, seconds=dict.fromkeys(names, 0.5), bound={}, peak=dict.fromkeys(names, 3e9))
        for p in ("bf16", "fp16")
    ]
    console = Narrow()
    on_gpu._table(found, "NVIDIA H100 80GB HBM3", console)
    first = {row[0] for row in console.rows}
    assert first == {"NVIDIA H100 80GB HBM3", *names, *(f"peak of 18 images, {name}" for name in names)}


def test_checkpoints_and_schedules_are_tables_of_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    checkpoints._print([("123456", "step-123456-3fa9c1d2", "yes", "yes", "latest, best")])
    schedules = ("retrain-the-team-model-each-night-at-three", "0 0 3 * * MON-FRI", "paused")
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_table(("schedule", "cron (seconds first)", ""), [schedules])
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("step-123456-3fa9c1d2" in line and "latest, best" in line for line in lines)
    assert any(all(cell in line for cell in schedules) for line in lines)


def test_the_scores_of_a_model_are_a_table_of_80_columns_and_the_same_numbers_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    words = ("demo", "score", "-n", "6", "--steps", "1", "--guidance", "1")
    assert run_marble(*words, monkeypatch=monkeypatch) == 0
    table = capsys.readouterr().out
    assert max(map(len, table.splitlines())) <= 80 and "demo://sd3, guidance 1" in table
    assert run_marble(*words, "--json", monkeypatch=monkeypatch) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert one["model"] == "demo://sd3" and one["guidance"] == 1 and one["scores"]["ocr"]["prompts"] == 6
    for score in one["scores"].values():
        assert f"{score['mean']:.2f} ± {score['half']:.2f}" in table


def test_the_roofline_is_tables_of_80_columns() -> None:
    work = SimpleNamespace(flop=4.9e16, bytes=1.8e14, count=1431971, seconds=lambda gpu: 518.2, floor=lambda gpu: 408.9)
    found: Any = SimpleNamespace(phases=dict.fromkeys(PHASES, work), step=work)
    console = Narrow()
    for gpu in GPUS.values():
        roofline_table._by_phase(found, gpu, console)
    roofline_table._by_gpu(found, load_config("sd35-medium-8gpu"), console)
    assert {row[0] for row in console.rows} >= {*PHASES, "step", *GPUS}
    assert "RTX4090, one process" in console.said.getvalue()
