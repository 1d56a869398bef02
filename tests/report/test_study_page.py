"""The page of a study: what is done and what runs, arms over seeds, and no comparison that is not fair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from marble_core.evaluation.results import Estimate
from marble_core.report.frontier import Curve, Spot, draw
from marble_core.report.scatter import Point, scatter
from marble_core.report.study import About, headline, remarks, render_study, summary, tables
from pages import Page
from report_builders import a_variant
from study_builders import NAMES, a_cell

FILE = {"preset": "demo", "set": ["train.steps=4"], "seeds": [0, 1], "arms": {"full": [], "equal": ["balance.method=equal"]}}
CELLS = [a_cell("full", 0, 0.6), a_cell("equal", 0, 0.2), a_cell("full", 1, 0.7)]
STATE = {("full", 0): "done", ("full", 1): "done", ("equal", 0): "done", ("equal", 1): "runs, step 3/4"}
ABOUT = About("hackable", FILE, STATE, "3 of 4 done; about 2.0 min left")


def test_the_page_says_what_is_done_what_runs_and_who_gained(tmp_path: Path) -> None:
    (tmp_path / "study.html").write_text(render_study(ABOUT, CELLS))
    page = Page(tmp_path / "study.html")
    text = " ".join(page.text.split())
    assert "3 of 4 done; about 2.0 min left" in text and "runs, step 3/4" in text
    assert "After 4 steps full gained most over the base, +0.6" in text and "2 seeds" in text
    assert text.index("After 4 steps, over the base") < text.index("After 2 steps, over the base"), "the last step first"
    assert "mode collapse in 2 of 2" in text and "-20 %" in text.replace("\N{MINUS SIGN}", "-")
    assert "Of equal only one seed is finished" in text
    assert "Arm equal" in text and "balance.method=equal" in text and "c" * 40 in text
    drawn = [p["aria-label"] for p in page.all("svg") if "role" in p]
    assert len(drawn) == 2 * len(NAMES) and all("full, equal" in label for label in drawn)


def test_a_study_without_a_finished_cell_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "study.html").write_text(render_study(ABOUT, []))
    assert "has no finished cell yet" in Page(tmp_path / "study.html").text


def test_arms_that_were_measured_otherwise_are_not_held_against_each_other() -> None:
    other = replace(CELLS[1], measuring={**CELLS[1].measuring, "prompts_sha256": "2"})
    assert summary(ABOUT, [CELLS[0], other])["steps"]["4"]["over_first"]["equal"] == {}
    assert summary(ABOUT, CELLS)["steps"]["4"]["over_first"]["equal"]["ocr"]["seeds"].keys() == {"0"}
    assert any("not all evaluated alike" in said for said in remarks([CELLS[0], other]))
    assert any("2 different commits" in said for said in remarks([CELLS[0], replace(CELLS[1], commit="d")]))


def test_the_terminal_has_a_table_for_each_step_and_one_against_the_first_arm() -> None:
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as said:
        for table in tables(CELLS, ["full", "equal"]):
            console.print(table)
    text = said.get()
    assert all(f"After {step} steps: gain over {whom}" in text for step in (2, 4) for whom in ("the base", "full"))
    assert headline(ABOUT, []) == "The study hackable has no finished cell yet."


def test_the_page_draws_gain_against_diversity_of_all_arms_and_what_is_free(tmp_path: Path) -> None:
    varied = {"varied": tuple(range(10)), "free_roles": {"base-g2": CELLS[0].base}}
    cells = []
    for cell in CELLS:
        roles = {"trained-s0.5": cell.base}
        variants = (a_variant(2, 1, 0, 0, model="base"), a_variant(1, 0.5, 0, 0))
        variants = tuple(replace(v, name=n) for v, n in zip(variants, ("base-g2", "trained-s0.5"), strict=True))
        distances = {"trained": (0.3,) * 10, "trained-s0.5": (0.45,) * 10}
        own = replace(cell.evaluations[4], variants=variants, roles=roles, distances=distances)
        free = {"base": (0.5,) * 10, "base-g2": (0.4,) * 10}
        cells.append(replace(cell, evaluations={4: own}, distances=free, **varied))
    (tmp_path / "study.html").write_text(render_study(ABOUT, cells))
    (label,) = [
        p["aria-label"] for p in Page(tmp_path / "study.html").all("svg") if "Mean gain against" in p.get("aria-label", "")
    ]
    assert "base under guidance: base at +0 % and +0.00, g 2 at -20 % and +0.00" in label
    assert "full by strength: base at +0 % and +0.00, s 0.5 at -10 % and +0.00, full at -40 % and +0.6" in label
    assert "equal by guidance: equal at -40 %" in label
    found = summary(ABOUT, cells)["steps"]["4"]
    assert found["roles"]["full"]["base-g2"]["Mean gain"]["seeds"].keys() == {"0"}
    assert found["diversity"]["full"]["trained"]["mean"] == pytest.approx(-0.4)


def test_a_mean_outside_of_its_own_interval_is_drawn() -> None:
    """As a percentile interval of few prompts may leave it."""
    spot = Spot("trained", Estimate(-0.1, -0.09, 0.0), Estimate(0.2, 0.1, 0.19))
    assert "trained" in draw([Curve("training", (spot,))], "few").svg


def test_a_run_may_be_called_like_a_formula() -> None:
    assert "$\\frac{$" in scatter([Point("a", 0.1, 0.2, label="$\\frac{$")], "ocr", "clipscore", "key")
