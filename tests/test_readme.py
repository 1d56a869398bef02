"""What the README shows is run as it stands there, from outside the package."""

import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import distribution

from packaging.requirements import Requirement

from conftest import ROOT
from test_demo import TINY

README = (ROOT / "README.md").read_text()
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

ONE_STEP = """
import sys
from marble_core import train
from marble_core.loading import load_config
from marble_core.prompts.data import prepare_data
from marble_core.step import optimizer_step

config = load_config("demo", overrides=sys.argv[1:])
report = optimizer_step(train.start(config), prepare_data(config).train)
assert report.metrics["reward/warmth/std"] > 0 and 0 < report.metrics["alpha/warmth"] <= 1, report
"""


def section(title: str) -> list[str]:
    """The code blocks below a heading."""
    text = README.split(f"## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"```(?:\w*)\n(.*?)```", text, flags=re.DOTALL)


def test_the_ten_lines_of_a_users_own_reward_train(tmp_path):
    code, command = section("A reward of your own")
    (tmp_path / "my_rewards.py").write_text(code)
    assert len([line for line in code.splitlines() if line.strip() and not line.lstrip().startswith("#")]) <= 10
    (override,) = [word for word in shlex.split(command) if word.startswith("rewards=")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", ONE_STEP, *TINY, override],
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
