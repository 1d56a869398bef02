"""Wherever seconds, minutes or hours are a setting or an option, 90m says as much; both are stored as the same number."""

from __future__ import annotations

import jsonschema
import pytest

from commands import one_sentence, run_marble
from marble_core.config.durations import duration, parse_duration
from marble_core.config.loading import load_config
from marble_core.config.pipeline_parameters import overrides_of
from marble_core.config.reference import json_schema
from marble_core.types import MarbleError
from marble_kubeflow.pipelines.settings import Backoff, Pod, Workflow


@pytest.mark.parametrize(
    ("text", "unit", "number"),
    [("24h", "h", 24), ("90m", "h", 1.5), ("1h30m", "m", 90), ("2d", "s", 172800), ("45s", "m", 0.75), ("1.5h", "m", 90), ("7", "m", 7)],
)  # fmt: skip
def test_a_duration_is_read_in_the_unit_that_is_wanted(text: str, unit: str, number: float) -> None:
    assert parse_duration(text, unit) == pytest.approx(number, rel=1e-12)


@pytest.mark.parametrize("text", ["", "h", "90 m", "-5m", "5min", "1:30", "90M", "m90"])
def test_what_is_no_duration_is_refused_with_one_that_would_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"a number of minutes, or a duration such as 90m, 1h30m or 2d"):
        parse_duration(text, "m")


def test_settings_take_durations_and_store_the_numbers_of_their_names() -> None:
    given = ["train.checkpoint_minutes=1h30m", "storage.max_unsaved_minutes=2d", "rewards=[{name: ocr, timeout: 5m}]"]
    config = load_config("demo", overrides=given)
    assert (config.train.checkpoint_minutes, config.storage.max_unsaved_minutes, config.rewards[0].timeout) == (90, 2880, 300)
    same = load_config("demo", overrides=["train.checkpoint_minutes=90", *given[1:]])
    assert same.digest == config.digest
    assert Pod.model_validate({"timeout_hours": "90m"}).timeout_hours == 1.5
    assert Workflow.model_validate({"deadline_hours": "2d", "keep_hours": "0h"}) == Workflow(deadline_hours=48, keep_hours=0)
    assert Backoff.model_validate({"seconds": "1m"}).seconds == 60
    form = load_config("demo", overrides=overrides_of("demo", '{"train": {"checkpoint_minutes": "1h30m"}}'))
    assert form.train.checkpoint_minutes == 90


@pytest.mark.parametrize(("value", "says"), [("0m", "above 0"), ("soon", "duration such as 90m"), ("yes", "a number, not")])
def test_a_setting_that_is_no_duration_is_one_sentence(value: str, says: str) -> None:
    with pytest.raises(MarbleError) as caught:
        load_config("demo", overrides=[f"train.checkpoint_minutes={value}"])
    one_sentence(str(caught.value), "train.checkpoint_minutes", says)


def test_the_json_schema_takes_numbers_within_their_bounds_and_durations() -> None:
    checker = jsonschema.Draft202012Validator(json_schema())
    for right in (15, "90m", "1h30m"):
        checker.validate({"train": {"checkpoint_minutes": right}})
    for wrong in (0, -3, "soon", "90 m"):
        assert not checker.is_valid({"train": {"checkpoint_minutes": wrong}}), wrong


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("runs", "wait", "x", "--timeout", "soon"), "a number of seconds, or a duration such as 90m"),
        (("runs", "wait", "x", "--every", "0"), "at least 0.01 s"),
        (("runs", "wait", "x", "--timeout", "inf"), "at least 0 s"),
        (("serve", "--every", "0.5s"), "at least 1 s"),
        (("submit", "--wait", "--timeout", "-1"), "at least 0 s"),
    ],
)
def test_an_option_that_is_no_duration_is_one_sentence(
    arguments: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_marble(*arguments, monkeypatch=monkeypatch) == 2
    one_sentence(capsys.readouterr().err, arguments[-2], says)


def test_durations_are_said_in_seconds_minutes_or_hours() -> None:
    assert [duration(seconds) for seconds in (8.24, 240, 5399, 50000)] == ["8.2 s", "4.0 min", "90.0 min", "13.9 h"]
