"""On a terminal of 80 columns no table is broken: each row stays one line, and no name loses a letter."""

from __future__ import annotations

import re
from typing import Any

import pytest
from rich.console import Console

from marble_core.cli.kubeflow import print_table
from marble_core.cli.listing import _NAMES, Kind, list_
from marble_core.cli.run_summary import _tables
from marble_core.cli.runs import LEAST, OUTCOMES
from marble_core.config.loading import load_config, presets
from marble_core.evaluation.paper_table import COLUMNS, ROWS, Measured, lines, set_names
from marble_core.evaluation.results import Champion, Estimate, Evaluation, RewardResult, Versus

NAME = "20261124-093000-3fa9c1"


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What was printed on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")

    def printed() -> list[str]:
        said = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()  # headings are bold
        assert said and max(map(len, said)) <= 80, said
        return said

    return printed


def test_runs_lose_columns_before_a_name_loses_letters(narrow: Any) -> None:
    headings = ("run", "state", "stage", "step", "left", "attempt", "created")
    row = (f"rehearsal-{NAME}", "SUCCEEDED", "evaluate", "300/300", "287 min", "2", "2026-11-24 09:30")
    print_table(headings, [row], ("created", "attempt", "left"))
    said = narrow()
    (line,) = [line for line in said if NAME in line]
    assert "300/300" in line and "created" not in "".join(said)
    print_table(headings, [("one", "RUNNING", "train", "", "", "1", "2026-11-24 09:30")], ("created", "attempt", "left"))
    assert "created" in "".join(narrow()), "where there is room nothing is left out"


def test_the_runs_of_a_schedule_lose_columns_before_a_name_loses_letters(narrow: Any) -> None:
    row = ("2026-11-24 09:30", f"nightly-{NAME}", "SUCCEEDED", "refused", "+0.243", "12", "9.6 of 12")
    print_table(OUTCOMES, [row], LEAST)
    (line,) = [line for line in narrow() if NAME in line]
    assert "refused" in line and "+0.243" in line and "9.6 of 12" not in line


@pytest.mark.parametrize("kind", list(Kind))
def test_what_a_configuration_can_name_keeps_each_name_whole(kind: Kind, narrow: Any) -> None:
    list_(kind)
    first = {line.split("  ")[0] for line in narrow() if not line.startswith(" ")}
    assert set(_NAMES[kind]()) == first


def test_the_table_of_a_run_keeps_each_reward_on_a_line_with_a_champion_too(narrow: Any) -> None:
    d = Estimate(0.1234, -0.1234, 0.4321)
    found = {name: RewardResult(576, 5.332, 5.453, d, 0.3, 0.61) for name in ("compressibility", "unifiedreward")}
    champion = Champion({name: Versus(5.4, d, 0.5) for name in found}, {}, d)
    evaluation = Evaluation(found, {}, d, champion=champion, champion_version="12")
    _tables(Console(highlight=False, width=80), evaluation)
    said = narrow()
    whole = [line for line in said if "compressibility" in line]
    assert len(whole) == 2 and all("+0.123 (-0.123 to +0.432)" in line for line in whole) and "576" in whole[0]
    assert any("champion, version 12" in line for line in said)


@pytest.mark.parametrize("preset", presets())
def test_the_estimate_of_memory_is_a_table_of_80_columns(preset: str, narrow: Any) -> None:
    from marble_core.cli.step_cost import _table
    from marble_core.estimate import memory_of, resolve_batch_sizes, sizes_of
    from marble_core.rewards.cards import cards_of

    config = load_config(preset)
    config = resolve_batch_sizes(config, cards_of(config.measured))
    sizes = sizes_of(config.model)
    assert sizes is not None
    print("\n".join(_table(config, memory_of(config, sizes, cards_of(config.measured)))))
    assert "evaluating" in narrow()[1]


def test_the_published_table_is_cut_into_blocks_that_fit_and_only_what_was_measured_stands_alone() -> None:
    config = load_config("demo")
    ours = {"ours, base": {column.reward: Measured(0.5, 0.1, 3) for column in COLUMNS}}
    said = list(lines(ours, ROWS, set_names(config, ()), 80))
    assert max(map(len, said)) <= 80 and sum(line.startswith("MARBLE") for line in said) == 2
    own = list(lines({"ours, base": {"ocr": Measured(0.5, None, 3)}}, {}, set_names(config, ()), 80))
    assert own[0].split() == ["OCR"] and own[1].split() == ["prompts", "demo"] and own[2].split() == ["ours,", "base", "0.5"]
