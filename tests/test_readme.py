"""What README and docs/extending.md show is run as it stands there, from outside the package."""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import distribution

from packaging.requirements import Requirement

from commands import TINY, run_marble
from paths import ROOT

README = (ROOT / "README.md").read_text()
EXTENDING = (ROOT / "docs" / "extending.md").read_text()
HEAVY = {
    "torchvision",
    "open-clip-torch",
    "mmcv",
    "mmcv-full",
    "mmdet",
    "mmengine",
    "paddlepaddle",
    "paddleocr",
    "hpsv2",
    "image-reward",
}


def section(title: str) -> list[str]:
    """The code blocks below a heading."""
    text = EXTENDING.split(f"## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"```(?:\w*)\n(.*?)```", text, flags=re.DOTALL)


CAPTIONS = """
import sys
from collections import Counter
from marble_core.config.loading import load_config
from marble_core.prompts import mix
from marble_core.training.data_check import checked_data
from marble_core.step import optimizer_step
from marble_core.training import loop

config = load_config("demo", overrides=sys.argv[1:])
data = checked_data(config)
batch = mix(data.train, 6, 4, 0, config.seed, config.data.shares)
assert Counter(p.source for p in batch.prompts) == {"captions": 3, "general": 1, "ocr": 1, "geneval": 1}, batch
assert {p.metadata["reference"] for p in data.evaluation if p.source == "captions"} == {"a green circle on black"}
assert not data.warnings, data.warnings
learner = loop.start_learner(config)
before = {name: p.clone() for name, p in learner.policy.parameters_of("default").items()}
for _ in range(2):
    report = optimizer_step(learner, data.train)
    assert not report.skipped and report.metrics["reward/reference/std"] > 0 and 0 < report.metrics["alpha/reference"] <= 1, report
assert any((p != before[name]).any() for name, p in learner.policy.parameters_of("default").items())
"""


def test_a_reward_with_a_reference_text_and_a_source_of_its_own_trains_from_a_folder_outside_of_the_repository(tmp_path):
    """Everything is as docs/extending.md has it: two files of prompts, a class, and the words of the command."""
    train, held_out, code, command = section("A reward with data of its own")
    for name, text in (("captions.jsonl", train), ("held_out.csv", held_out), ("my_captions.py", code)):
        (tmp_path / name).write_text(text)
    words = [word for word in shlex.split(command) if "=" in word]
    assert len(words) == 4
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    tiny = [*TINY, "rollout.prompts=6", "train.processes=1"]
    done = subprocess.run(
        [sys.executable, "-c", CAPTIONS, *tiny, *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_rewards_need_none_of_the_packages_that_do_not_install(capsys):
    """The closure of the extras train and rewards, as it is installed here, with its size."""
    found: dict[str, int] = {}
    waiting = [("marble-core", "train"), ("marble-core", "rewards")]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        dist = distribution(name)
        files = [file.locate() for file in dist.files or ()]
        found[name.lower()] = sum(file.stat().st_size for file in files if file.exists())
        for text in dist.requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                new = {(needed.name, inner) for inner in needed.extras or {""}} - seen
                seen |= new
                waiting += new
    assert not found.keys() & HEAVY
    largest = sorted(found, key=lambda name: -found[name])[:5]
    with capsys.disabled():
        total = sum(found.values()) / 1e6
        print(
            f"\nextras train and rewards: {len(found)} packages, {total:.0f} MB: {', '.join(f'{n} {found[n] / 1e6:.0f}' for n in largest)}, ..."
        )


def test_the_hours_of_each_preset_are_what_the_estimate_says(monkeypatch, capsys):
    rows = [line.split(" | ") for line in README.splitlines() if line.startswith("| `sd35-")]
    said = {
        name: hours
        for row in rows
        for name, hours in zip(re.findall("`([^`]+)`", row[0]), row[2].strip(" |").split(", "), strict=True)
    }
    assert len(said) == 5
    for name, hours in said.items():
        assert run_marble("check", "--estimate", "--preset", name, monkeypatch=monkeypatch) == 0
        assert f"hours        {hours} for the training" in capsys.readouterr().out, name


def test_the_demos_table_is_that_of_the_committed_run():
    run = json.loads((ROOT / "docs/demo_run.json").read_text(encoding="utf-8"))

    def within(value, digits="+.3f", times=1):
        low, high = sorted((times * value["low"], times * value["high"]))
        return f"{times * value['mean']:{digits}}", f"({low:{digits}} to {high:{digits}})"

    for name, r in run["rewards"].items():
        difference, interval = within(r["difference"])
        assert f"| {name} | {r['n']} | {r['base']:.3f} | {r['trained']:.3f} | {difference} {interval} |" in README
    assert f"Mean gain {' '.join(within(run['mean_gain']))} standard deviations" in README
    loss, interval = within(run["diversity_change"], ".0f", -100)
    assert f"became more alike, by {loss} % {interval}" in README and f"at commit {run['commit']} " in README
