"""The one-page report: it says what happened, stands alone, and is truthful about a training that went wrong."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from marble_core.config.schema import RunConfig
from marble_core.evaluation.gate import decide
from marble_core.evaluation.results import Alarm
from marble_core.report import write_report
from marble_core.report.curves import Line, balance_figures, ends, panel, reward_figures, running_mean
from marble_core.report.drawing import to_svg
from marble_core.report.images import large_pairs
from marble_core.report.page import watch_remarks
from marble_core.report.scatter import Point, pareto_front
from marble_core.tracking.step_history import History
from pages import Page
from report_builders import (
    NAMES,
    a_config,
    a_look,
    an_evaluation,
    with_champion,
    with_variants,
    write_history,
    write_pictures,
    written_report,
)

MAX_BYTES = 3_000_000


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return a_config()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(written_report(tmp_path_factory.mktemp("report")))


def test_the_page_fetches_nothing_and_its_one_script_is_in_it(page: Page) -> None:
    assert {tag for tag, attributes in page.tags if not attributes.get("href", "#").startswith("#")} <= {"a"}
    assert page.all("script") == [{}] and not page.all("link") and not page.all("iframe")
    for _, attributes in page.tags:
        for name in ("src", "xlink:href", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/"))
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in page.raw
    assert all(target.startswith(("#", "data:")) for target in re.findall(r"url\(['\"]?([^'\")]*)", page.raw))


def test_every_picture_is_embedded_and_every_figure_has_words(page: Page) -> None:
    pictures, plots = page.all("img"), page.all("svg")
    assert len(pictures) == 4 * 2 + 3 * 3 * 6
    assert all(p["src"].startswith("data:image/png;base64,") and p["alt"].strip() for p in pictures)
    assert len(plots) == 1 + 1 + 3 + 3
    assert all(p["role"] == "img" for p in plots) and "Scatter of ocr and geneval" in plots[1]["aria-label"]
    assert all("over 6 steps" in p["aria-label"] for p in plots[2:])


def test_the_page_is_one_valid_document(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)), "two figures share an id, so one would borrow the other's clip path"
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1
    assert 'alert("x")</script> & co 0' in page.text, "a prompt is shown as it is, not run"


def test_curves_follow_the_theme_of_the_page(page: Page) -> None:
    plots = "".join(re.findall(r"<svg.*?</svg>", page.raw, re.DOTALL))
    assert "var(--s0)" in plots and "currentColor" in plots
    assert not re.search(r"#f[ed]00\d\d", plots), "a stand-in colour was left"
    assert "<style" not in plots
    for theme in ("prefers-color-scheme: dark", "@media print", "max-width: 980px"):
        assert theme in page.raw


def test_the_page_begins_with_the_answers_to_four_questions(page: Page) -> None:
    text = " ".join(page.text.split())
    head = text.partition("Rewards on held-out prompts")[0]
    assert "Better than the champion, version 7, by 0.10 standard deviations on average, but the images of one prompt" in head
    assert "Is it better? Yes: against the base geneval rose; clipscore and ocr did not change measurably." in head
    assert "What is the catch? Mode collapse is suspected. Harm to clipscore, ocr and geneval is not shown, but" in head
    assert 'Which prompt got worst? “<script>alert("x")</script> & co 0”: clipscore went from 1.000 to −7.000.' in head
    assert "What next? Settle the alarm first. Register makes it the champion of marble" in head
    assert re.search(r"Promoted MARBLE · run wednesday · demo://sd3 · marble · \d{4}-\d\d-\d\d \d\d:\d\d UTC", head)


def test_each_interval_is_said_once(page: Page) -> None:
    outside = re.sub(r"<details>.*?</details>|<table class=\"past.*?</table>", "", page.raw, flags=re.DOTALL)
    intervals = re.findall(r'class="interval">([^<]*)<', outside)
    assert len(intervals) == 2 * (3 + 1) + 1, "each reward and the mean, over base and champion; and the votes of people"
    assert "0.200" in outside and outside.count("+0.100 to +0.300") == 2, (
        "of geneval and of the mean gain, which are equal here"
    )


def test_the_large_pairs_are_the_largest_win_and_loss_and_the_first_of_sources(page: Page) -> None:
    labels = re.findall(r'<p class="label">([^<]*)<', page.raw)
    assert labels == ["Largest win", "Largest loss", "First of ocr, not chosen", "First of geneval, not chosen"]
    large = [p["alt"] for p in page.all("img")[:8]]
    assert [int(alt.rsplit(" ", 1)[1]) for alt in large[::2]] == [41, 0, 14, 28]
    assert [alt.partition(" ")[0] for alt in large] == ["Base", "Trained"] * 4


def test_a_link_leads_to_each_further_page(config: RunConfig, tmp_path: Path) -> None:
    links = {"Run in MLflow": "https://mlflow.example/#/experiments/1/runs/2"}
    evaluation = an_evaluation()
    decision = decide(evaluation, config.registry)
    write_report(tmp_path / "r.html", evaluation, decision, None, tmp_path, config, links=links)
    assert [a["href"] for a in Page(tmp_path / "r.html").all("a")] == list(links.values())


def test_the_page_says_what_training_cost(page: Page) -> None:
    cost = " ".join(page.text.partition("Cost")[2].split())
    assert cost.startswith(
        "2.0 min for 6 steps and 1,728 images: 14.4 images per second. sample 30.0 s 25 % train 1.5 min 75 %"
    )
    assert "Training ended" not in page.text and "skipped" not in page.text
    assert re.search(r"Beside the rewards .*geneval/strict\s+96\s+0\.25\d*\s+0\.31\d*\s+0\.37\d*", page.text, re.DOTALL)


def test_the_page_holds_the_model_against_the_champion_and_shows_the_runs_before_it(page: Page) -> None:
    text = " ".join(page.text.split())
    assert "The ring is the champion, version 7." in text and "over the champion" in page.raw
    assert re.search(
        r"geneval 96 0\.50\d* 0\.60\d* 0\.70\d* ▲ \+0\.200 \+0\.100 to \+0\.300 50 % \+0\.100 −0\.100 to \+0\.300", text
    )
    assert "⚠ Mode collapse The images of one prompt became more alike: −50 percent. What to do: Look at several" in text
    assert "base 0.500, champion 0.375, trained 0.250, a change of −50 % (−60 to −40)" in text
    assert "monday 2026-11-23 marble +0.100 +0.050 to +0.150 promoted 7 (champion)" in text
    assert "wednesday marble as above promoted" in text
    alt = page.all("svg")[1]["aria-label"]
    assert "run monday at 0.6 and 0.6; base at 0.5 and 0.5; champion at 0.495 and 0.6; trained at 0.49 and 0.7" in alt
    assert "tuesday" not in alt, "its base scored otherwise, so it was measured on something else"


def test_the_page_shows_each_look_with_its_intervals_and_the_first_alarm(page: Page) -> None:
    text = " ".join(page.text.split())
    assert "2 +0.02 −0.10 to +0.20 −0.50 −0.75 to −0.25 −30 % −40 to −20" in text, "changes in the base's standard deviations"
    assert "After step 4, the first alarm, reward hacking: colour_entropy went to 1" in text


def test_the_page_says_which_step_the_watch_chose_and_what_that_is_worth_on_other_prompts(config: RunConfig) -> None:
    history = History(np.arange(1, 5), {})
    looks = [a_look(2), a_look(4), a_look(6, Alarm("damage", "x"))]
    both = config.model_copy(
        update={
            "train": config.train.model_copy(update={"keep_best": True}),
            "watch": config.watch.model_copy(update={"on_alarm": "stop"}),
        }
    )
    stopped, best = watch_remarks(an_evaluation(), history, looks, both)
    assert stopped.startswith("An alarm after step 6 ended the training")
    assert "after step 4" in best and "chosen by is +0.040" in best and "has not seen, +0.200" in best
    assert watch_remarks(an_evaluation(), history, looks, config) == []


def test_the_page_lists_what_the_gate_asks_and_each_answer(config: RunConfig, tmp_path: Path) -> None:
    evaluation = replace(
        with_champion(an_evaluation(ocr=(-0.2, -0.3, -0.1), clipscore=(-0.2, -0.3, -0.1))), missing=("aesthetic",)
    )
    floors = ("geneval >= 0.6", "clipscore >= 0.9")
    config = config.model_copy(update={"registry": config.registry.model_copy(update={"floors": floors, "margin": 0.1})})
    write_report(tmp_path / "r.html", evaluation, decide(evaluation, config.registry), None, tmp_path, config)
    text = " ".join(Page(tmp_path / "r.html").text.split())
    for said in (
        "worse than the base by 0.1 standard deviations ocr ✕ no No reward",
        "worse than the base by 0.1 standard deviations clipscore ✕ no",
        "worse than the champion by 0.1 standard deviations none is ✓ yes",
        "Every reward is measured aesthetic: it applies to no held-out prompt ✕ no",
        "geneval >= 0.6 it holds ✓ yes",
        "clipscore >= 0.9 it does not hold ✕ no",
        "The mean gain over the champion is shown to be above 0 it is ✓ yes",
    ):
        assert said in text, said


def test_cosines_between_rewards_are_a_table_of_their_means(page: Page) -> None:
    said = re.findall(r'<tr(?: class="last")?><th scope="row">(\w+)</th>(.*?)</tr>', page.raw.partition('class="heat"')[2])
    cells = {name: re.findall(r"<td[^>]*>([^<]*)</td>", own) for name, own in said}
    assert cells["ocr"] == ["+0.98", "", "−0.75"] and cells["update"] == ["+0.50"] * 3
    assert "ocr and geneval are the pair whose gradients agree least" in " ".join(page.text.split())


def test_nobody_beats_what_is_on_the_pareto_front() -> None:
    places = [(0, 5), (1, 4), (1, 3), (2, 4), (3, 1), (2.5, 0.5), (3, 1)]
    points = [Point(str(i), x, y) for i, (x, y) in enumerate(places)]
    assert [(p.x, p.y) for p in pareto_front(points)] == [(0, 5), (2, 4), (3, 1)]


def test_the_other_images_are_of_the_first_prompts_which_nobody_chose(page: Page) -> None:
    shown = [int(p["alt"].rsplit(" ", 1)[1]) for p in page.all("img")[8:] if p["alt"].startswith("Trained")][:12]
    assert shown == [0, 1, 2, 3, 4, 5, 14, 15, 16, 17, 18, 19]
    assert page.text.count("the first 6 held-out prompts, not chosen") == 3


def test_a_killed_run_with_skipped_steps_makes_a_truthful_page(config: RunConfig, tmp_path: Path) -> None:
    history = write_history(tmp_path / "h.jsonl", 5, skipped=(2, 3, 5), tail='{"step": 6, "metr')
    evaluation = replace(an_evaluation(ocr=(-0.2, -0.3, -0.1)), notes=("Base and trained differ.",))
    write_report(tmp_path / "r.html", evaluation, decide(evaluation, config.registry), history, tmp_path / "none", config)
    page = Page(tmp_path / "r.html")
    assert "Refused: worse" in page.text and "ocr is worse than the base by −0.200 (−0.300 to −0.100)" in page.text
    assert "Training ended after step 5 of 6." in page.text
    assert "3 of 5 steps were skipped (×): 2, 3, 5." in page.text
    assert "Step 2: reward ocr is not finite for the prompt 'x'." in page.text
    assert "Base and trained differ." in page.text and "No images were saved." in page.text
    assert all("3 of them skipped and left blank" in plot["aria-label"] for plot in page.all("svg")[1:])
    assert "40.0 s for 2 steps and 576 images" in page.text, "of a skipped step nothing is counted"


def test_a_method_without_gradients_for_each_reward_has_no_alpha_and_says_so(config: RunConfig, tmp_path: Path) -> None:
    history = write_history(tmp_path / "h.jsonl", 6, gram=False)
    evaluation = an_evaluation()
    plain = config.model_copy(update={"balance": config.balance.model_copy(update={"method": "weighted_sum"})})
    for given, plots, says in ((history, 1 + 3, "weighted_sum takes no gradient"), (None, 1, "left no history")):
        write_report(tmp_path / "r.html", evaluation, decide(evaluation, config.registry), given, tmp_path, plain)
        page = Page(tmp_path / "r.html")
        assert len(page.all("svg")) == plots and says in page.text
        assert "ocr and geneval gained least and most on held-out prompts" in " ".join(page.text.split())


def test_large_pictures_are_reduced_until_the_page_is_small_enough(config: RunConfig, tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", size=300, per_source=12)
    evaluation = an_evaluation()
    write_report(tmp_path / "r.html", evaluation, decide(evaluation, config.registry), None, images, config)
    assert (tmp_path / "r.html").stat().st_size <= MAX_BYTES
    assert len(re.findall("data:image/webp", (tmp_path / "r.html").read_text())) >= 3 * 2 * 6


def test_curves_break_where_steps_were_skipped(tmp_path: Path) -> None:
    history = History.load(write_history(tmp_path / "h.jsonl", 6, skipped=(3,)))
    values = history.metrics["reward/ocr/mean"]
    assert list(np.flatnonzero(np.isnan(values))) == [2] and history.skipped == (3,)
    smooth = running_mean(values, 3)
    assert np.isnan(smooth[2]) and smooth[1] == pytest.approx((values[0] + values[1]) / 2)
    assert ends(np.array([1.0, np.nan, 2, 3, 4, 9])) == (1.0, 9.0)
    assert all("left blank" in f.svg for f in [*reward_figures(history, NAMES, 6), *balance_figures(history, NAMES, 6)])


def test_a_long_history_is_drawn_by_block_means_that_end_at_its_last_step() -> None:
    steps = np.arange(1, 1002)
    values = np.where(steps <= 6, np.nan, steps.astype(float))
    thin = History(steps, {"a": values}).thinned(200)
    assert len(thin.steps) == 167 and thin.steps[-1] == 1001 and set(np.diff(thin.steps)) == {6}
    assert np.isnan(thin.metrics["a"][0]) and thin.metrics["a"][1] == 9
    assert thin.metrics["a"][-1] == np.mean([996, 997, 998, 999, 1000, 1001])


def test_of_a_step_that_was_trained_twice_the_later_counts(tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").write_text(
        "".join(f'{{"step": {s}, "metrics": {{"a": {v}}}}}\n' for s, v in ((1, 1), (2, 2), (2, 5), (4, 7)))
    )
    history = History.load(tmp_path / "h.jsonl")
    np.testing.assert_equal(history.metrics["a"], [1, 5, np.nan, 7])
    assert history.skipped == (3,)


def test_the_page_holds_the_model_against_guidance_and_strength_and_recommends_of_them(page: Page) -> None:
    text = " ".join(page.text.split())
    assert "All rewards rose at once on 25 % (20 to 30) of the prompts" in text
    assert "guidance 1, strength 0.5; it was chosen on the prompts it was measured on" in text
    assert re.search(r"base 2 ▲ \+0\.250 \+0\.150 to \+0\.350 −30 % −40 to −20 25 % −0\.050 −0\.150 to \+0\.050", text)
    (label,) = [p["aria-label"] for p in page.all("svg") if "Mean gain against" in p.get("aria-label", "")]
    assert "base under guidance: base at +0 % and +0.00, g 1.5 at -10 % and +0.10, g 2 at -30 % and +0.25" in label
    assert "trained under guidance: trained at -50 % and +0.20, g 3 at -60 % and +0.40" in label
    assert "LoRA by strength: base at +0 % and +0.00, s 0.5 at -15 % and +0.10, trained at" in label
    assert "strength and guidance s 0.5, g 1.5: s 0.5, g 1.5 at -30 %" in label and "champion at -25 % and +0.10" in label


def test_the_page_says_diversity_by_source(config: RunConfig, tmp_path: Path) -> None:
    evaluation = with_variants(-0.3)
    images = write_pictures(tmp_path / "images")
    write_report(tmp_path / "r.html", evaluation, decide(evaluation, config.registry), None, images, config)
    text = " ".join(Page(tmp_path / "r.html").text.split())
    assert "By source: general −30 % (−40 to −20, 32 prompts); ocr −30 % (−40 to −20, 64 prompts)." in text
    assert "Against what costs no training" not in text


def test_a_number_on_an_axis_keeps_its_digits() -> None:
    lines = [Line(np.arange(1, 4), np.array([0.74, 0.77, 0.81]))]
    ticks = re.findall(r">(0\.\d+)</text>", to_svg(panel(lines, 3), "key", "curve"))
    steps = np.diff([float(tick) for tick in ticks])
    assert len(ticks) > 2 and np.allclose(steps, steps[0]), ticks


def test_where_not_every_prompt_has_images_the_pairs_say_of_how_many_they_are(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images")
    lines = [json.loads(line) for line in (images / "scores.jsonl").read_text("utf-8").splitlines()]
    lines[0].pop("pictures")
    (images / "scores.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    labels = [case.label for case in large_pairs(images, an_evaluation())]
    assert labels[:2] == ["Largest win of the 41 prompts with images", "Largest loss of the 41 prompts with images"]
