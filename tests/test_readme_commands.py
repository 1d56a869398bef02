"""Each command that README shows is taken as it stands there, and is run by a test, or a page says that it was not run."""

from __future__ import annotations

import re
import shlex

import pytest
import typer

from marble_core import cli
from paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PLATFORM = "docs/tasks/platform_engineer.md"
# By how the command begins: the test that runs it, on the demo or with a stub's answers where it needs a GPU, the hub or a cluster; or
# the page that says it was not run, and its words. The longest beginning that fits is the command's.
RUN_BY = {
    "make demo": ("tests/test_demo.py", "test_one_command_ends_with_the_table_the_decision_and_a_report"),
    "make test": ("docs/tasks/contributor.md", "`make test` is the whole suite"),
    "make venv": ("tests/test_make.py", "test_an_environment_that_does_not_fit_on_the_disk_is_one_sentence_and_is_not_begun"),
    "make images": (PLATFORM, "`make images REGISTRY=registry.example/team` builds the images"),
    "kubectl": ("README.md", "No real cluster has run this version"),
    "helm": (PLATFORM, "`helm install`, `helm test`"),
    "pip install": ("tests/deploy/test_install.py", "test_each_extra_holds_what_its_commands_were_missing"),
    "marble check": ("tests/test_readme.py", "test_the_hours_of_each_preset_are_what_the_estimate_says"),
    "marble fetch": ("tests/cli/test_fetch.py", "test_fetch_brings_what_is_missing_and_a_scorer_then_loads_without_a_network"),
    "marble run": ("tests/test_demo.py", "test_one_command_ends_with_the_table_the_decision_and_a_report"),
    "marble run --preset": ("docs/tasks/ml_engineer.md", "`marble run --preset sd35-medium-1gpu-24g` was not run"),
    "marble run --set": (
        "tests/test_examples.py",
        "test_the_reward_gives_the_difference_of_red_and_blue_and_a_step_trains_on_it",
    ),
    "marble run --rehearse": ("docs/tasks/ml_engineer.md", "$ marble run --rehearse --run-id first"),
    "marble run --run-id": ("tests/cli/test_run_again.py", "test_a_run_id_alone_goes_on_with_the_runs_own_settings"),
    "marble run --containers": ("tests/containers/test_runs.py", "def test_"),
    "marble compile": (PLATFORM, "$ marble compile --registry registry.example/team"),
    "marble submit": ("tests/pipelines/test_cluster.py", "def test_"),
    "marble schedule create": ("tests/pipelines/test_schedules.py", "def test_"),
    "marble ui": ("tests/cli/test_cli.py", "test_ui_names_the_server_that_is_there_the_experiments_page_and_the_newest_report"),
    "marble init": ("tests/cli/test_cli.py", "test_init_writes_a_configuration_that_changes_nothing_and_replaces_no_file"),
    "marble list": ("tests/cli/test_listing.py", "test_the_presets_are_the_files_and_each_loads"),
    "marble compare": ("tests/report/test_compare.py", "def test_"),
    "marble study": ("tests/faults/test_study_kills.py", "def test_"),
    "marble evaluate": ("tests/evaluation/test_evaluate.py", "def test_"),
    "marble serve": ("tests/serving/test_serve.py", "def test_"),
    "marble rollback": ("tests/tracking/test_registry.py", '"rollback"'),
    "marble export": ("tests/cli/test_export.py", "def test_"),
    "marble bench signal": ("tests/bench/test_signal.py", "def test_"),
    "marble demo pretrain": ("tests/demo/test_pretrain.py", "def test_"),
}


def commands() -> list[str]:
    """Those of blocks of code, and those between backticks; without comments, the place of the program and variables before it."""
    blocks = [text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL) if not kind]
    lines = [line.partition(" # ")[0].strip() for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL))
    parts = [part.strip().removesuffix("&").strip() for line in lines for part in line.split("&& ")]
    bare = [re.sub(r"^(PYTHONPATH=\S+ )?(\.venv/bin/)?", "", part) for part in parts]
    return list(dict.fromkeys(c for c in bare if re.match(r"(make|marble|kubectl|helm|pip) [a-z'-]", c)))


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("marble ")])
def test_each_command_of_the_readme_is_taken_with_its_options(command: str) -> None:
    group, (_, *words) = typer.main.get_command(cli.app), shlex.split(command)
    while hasattr(group, "commands"):
        group = group.commands[words.pop(0)]  # type: ignore[attr-defined]
    if words or not any(p.required for p in group.params):  # a bare name in a table stands for the command
        group.make_context(command, words)


def test_each_command_of_the_readme_is_run_by_a_test_or_a_page_says_that_it_was_not_run() -> None:
    found = commands()
    assert len(found) > 25
    owner = {c: max((b for b in RUN_BY if c == b or c.startswith(f"{b} ")), key=len, default="") for c in found}
    assert [c for c, beginning in owner.items() if not beginning] == []
    assert set(RUN_BY) - set(owner.values()) == set(), "README shows them no more"
    for place, words in RUN_BY.values():
        path = ROOT / place
        assert path.is_file() and words in path.read_text(encoding="utf-8"), f"{place}: {words}"
