"""A class of the user's own is looked for before a GPU is asked for, in a child process that may hang or crash."""

import json
import os
import time

import pytest

from marble_core.config.loading import load_config
from marble_core.rewards import own_classes
from marble_core.rewards.own_classes import check_own_classes
from marble_core.types import MarbleError
from waiting import eventually, is_alive

GOOD = """
import warmth_tables
class Warmth:
    value_range = (-1.0, 1.0)
    def __init__(self, weight: float = 1.0):
        self.applies = lambda prompt: True
    def score(self, images_NHWC, prompts): ...
    def self_check(self): ...
class Half:
    def applies(self, prompt): ...
    def score(self, images_NHWC, prompts): ...
class Detector:
    def __init__(self, size: int = 3): ...
class Family:
    def encode(self): ...
    def velocity(self): ...
"""
CHATS = """
from __future__ import annotations
from dataclasses import dataclass
from decimal import Decimal
from marble_core.rewards.judge import Judge
@dataclass(eq=False)
class Mine(Judge):
    warmth: Decimal = Decimal(1)
"""
CHAT = {"url": "http://a.example/v1", "model": "vlm"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A directory on PYTHONPATH with a reward, and a function that adds a module to it."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def add(name, text):
        (tmp_path / f"{name}.py").write_text(text)

    add("warmth", GOOD)
    add("warmth_tables", "")
    return add


def config(*rewards, **more):
    named = [{"name": f"mine{n}", **reward} for n, reward in enumerate(rewards)]
    return load_config("demo", overrides=[f"rewards={json.dumps(named)}", *(f"{key}={value}" for key, value in more.items())])


def test_a_class_that_is_there_and_takes_its_options_is_silent(package):
    assert check_own_classes(config({"scorer": "warmth:Warmth", "options": {"weight": 2}})) == []


def test_a_configuration_without_a_class_of_its_own_starts_no_process(monkeypatch):
    monkeypatch.setattr(own_classes, "_run_child", None)
    assert check_own_classes(load_config("demo")) == []


@pytest.mark.parametrize(
    ("reward", "more", "sentence"),
    [
        ({"scorer": "warmht:Warmth"}, {}, r"The reward 'mine0': 'warmht:Warmth' cannot be imported: there is no module 'warmht'; "),
        ({"scorer": "warmth:Warmht"}, {}, r"The reward 'mine0': the module 'warmth' has no class 'Warmht'\."),
        ({"scorer": "warmth:Half"}, {}, r"'warmth:Half' is no class of its kind, it lacks 'self_check'\."),
        ({"scorer": "warmth:Warmth", "options": {"wieght": 2}}, {}, r"'mine0' has no option 'wieght': did you mean 'weight'\?"),
        ({"scorer": "warmth:Warmth", "options": {"weight": "two"}}, {}, r"has the option 'weight' = 'two': it must be a number"),
        ({"scorer": "chats:Mine", "options": {**CHAT, "key_variable": "PGPASSWORD"}}, {}, r"'mine0': key_variable names 'PGPASSWORD'"),
        ({"scorer": "chats:Mine", "options": {**CHAT, "warmth": "two"}}, {}, r"the option 'warmth' = 'two': it must be a number"),
        ({"scorer": "chats:Mine", "options": {**CHAT, "workers": "two"}}, {}, r"the option 'workers' = 'two': it must be a whole number"),
        ({"scorer": "needy:Warmth"}, {}, r"'needy:Warmth' cannot be imported: there is no module 'no_such_table'; install it"),
        ({"scorer": "raises:Warmth"}, {}, r"importing 'raises:Warmth' failed: ZeroDivisionError: division by zero\."),
        ({"scorer": "exits:Warmth"}, {}, r"importing 'exits:Warmth' failed: SystemExit: 3\."),
        ({"scorer": "crashes:Warmth"}, {}, r"importing 'crashes:Warmth' ended the process that imported it, with exit code -6\."),
        (
            {"name": "geneval", "options": {"detector": "warmth:Detector", "detector_options": {"sise": 1}}},
            {},
            r"The detector of the reward 'geneval' has no option 'sise': did you mean 'size'\?",
        ),
        ({"scorer": "warmth:Warmth"}, {"balance.method": "warmth:Warmth"}, r"balance.method: 'warmth:Warmth' is no .*'needs_gram'"),
        ({"scorer": "warmth:Warmth"}, {"model.family": "warmth:Family"}, r"model.family: 'warmth:Family' is no .* lacks 'decode'"),
    ],
)  # fmt: skip
def test_what_would_fail_on_the_gpu_is_one_sentence_now(reward, more, sentence, package):
    package("chats", CHATS)
    package("needy", "import no_such_table")
    package("raises", "1 / 0")
    package("exits", "raise SystemExit(3)")
    package("crashes", "import os\nos.abort()")
    with pytest.raises(MarbleError, match=sentence):
        check_own_classes(config(reward, **more))


def test_where_torch_is_not_installed_what_lacks_a_module_is_not_checked_and_that_is_said(package, monkeypatch):
    package("torch", "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    package("heavy", "import torch\nclass Warmth: ...")
    monkeypatch.setattr(own_classes, "find_spec", lambda name: None)
    heavy, absent = {"scorer": "heavy:Warmth"}, {"scorer": "only_in_the_image:Warmth"}
    assert check_own_classes(config(heavy, absent, {"scorer": "warmth:Warmth"})) == [
        f"The reward 'mine{n}': '{path}' was not checked, for the module '{module}' is not installed here; "
        "see that the images of train and evaluate hold it (make images EXTRA=...)."
        for n, path, module in ((0, "heavy:Warmth", "torch"), (1, "only_in_the_image:Warmth", "only_in_the_image"))
    ]
    with pytest.raises(MarbleError, match="has no class 'Warmht'"):
        check_own_classes(config(heavy, {"scorer": "warmth:Warmht"}))


def test_an_import_that_hangs_is_ended_with_what_it_started_and_what_was_not_checked_is_said(package, tmp_path):
    package(
        "hangs",
        "import pathlib, subprocess\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(subprocess.Popen(['sleep', '3600']).pid))\n"
        "import threading\nthreading.Event().wait()",
    )
    began = time.monotonic()
    said = check_own_classes(
        config({"scorer": "warmth:Warmth"}, {"scorer": "hangs:Warmth"}, {"scorer": "warmth:Half"}), limit=15
    )
    assert said == [
        "The reward 'mine1': importing 'hangs:Warmth' did not end within 15 s, so not checked were 'hangs:Warmth', 'warmth:Half'."
    ]
    assert time.monotonic() - began < 60
    assert eventually(lambda: not is_alive(int((tmp_path / "pid").read_text()))), "what the import started is gone"
