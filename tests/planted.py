"""Runs tests against a changed source, without touching the file: in a fork whose imports find the new text.

torch and its kin are imported once, before the first fork; nothing of marble_core is there then.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.util
import json
import os
import resource
import signal
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = (
    "builders",
    "commands",
    "oracles",
    "paths",
    "tiny_rewards",
    "written_step",
)  # what tests share, and with it all else that they import
# What each file's tests are, the quickest first; every file ends with the whole steps.
STEPS = ("tests/test_written_step.py", "tests/test_step.py")
BALANCE = tuple(f"tests/algorithm/test_{n}.py" for n in ("baselines", "balance_rule", "balancers", "split_half", "min_norm"))
GRADIENTS = tuple(f"tests/algorithm/test_{name}.py" for name in ("losses", "gradients", "precision"))
TESTS = {
    "marble_core/algorithm/advantages.py": ("tests/algorithm/test_advantages.py", "tests/algorithm/test_baselines.py", *STEPS),
    "marble_core/algorithm/auto_trust.py": ("tests/algorithm/test_auto_trust.py", *STEPS[:1]),
    "marble_core/algorithm/backward.py": (
        "tests/algorithm/test_baselines.py",
        "tests/algorithm/test_kl_states.py",
        *GRADIENTS[1:],
        *STEPS,
    ),
    "marble_core/algorithm/balancers.py": (*BALANCE[:3], *STEPS),
    "marble_core/algorithm/block_recompute.py": GRADIENTS[2:],
    "marble_core/algorithm/diagnostics.py": ("tests/algorithm/test_missing_values.py", *STEPS[::-1]),
    "marble_core/algorithm/evidence.py": ("tests/algorithm/test_evidence.py", "tests/algorithm/test_meter.py"),
    "marble_core/algorithm/guards.py": ("tests/algorithm/test_guards.py",),
    "marble_core/algorithm/learner.py": (*STEPS, "tests/algorithm/test_meter.py"),
    "marble_core/algorithm/losses.py": (*GRADIENTS[:2], *STEPS),
    "marble_core/algorithm/marble.py": (
        *BALANCE[:3],
        *(f"tests/algorithm/test_{n}.py" for n in ("evidence", "guards", "auto_trust", "meter")),
        *STEPS,
    ),
    "marble_core/algorithm/meter.py": ("tests/algorithm/test_meter.py", "tests/algorithm/test_evidence.py"),
    "marble_core/algorithm/methods.py": (*BALANCE[:3], *STEPS),
    "marble_core/algorithm/metrics.py": (
        "tests/algorithm/test_guards.py",
        "tests/algorithm/test_missing_values.py",
        *STEPS[::-1],
    ),
    "marble_core/algorithm/min_norm.py": (BALANCE[4], *BALANCE[:3]),
    "marble_core/algorithm/projection.py": ("tests/algorithm/test_meter.py",),
    "marble_core/algorithm/row_gradients.py": (*GRADIENTS[1:], *STEPS, "tests/models/test_lean.py"),
    "marble_core/algorithm/split_half.py": (BALANCE[3], BALANCE[1], "tests/algorithm/test_guards.py", *STEPS),
    "marble_core/algorithm/trust.py": ("tests/algorithm/test_trust.py",),
    "marble_core/algorithm/update.py": (*STEPS, "tests/algorithm/test_meter.py"),
    "marble_core/evaluation/statistics.py": ("tests/evaluation/test_statistics.py", "tests/evaluation/test_evaluate.py"),
    "marble_core/models/policy.py": ("tests/models/test_policy.py", STEPS[0]),
    "marble_core/models/rollout.py": STEPS[:1],
    "marble_core/models/sampling.py": (STEPS[0], "tests/models/test_rollout.py"),
    "marble_core/prompts/mixing.py": ("tests/prompts/test_mixing.py", STEPS[0]),
    "marble_core/step.py": STEPS,
    "marble_core/types.py": ("tests/algorithm/test_split_half.py", *STEPS),
}
QUICK = "not services and not slow and not deep and not faults and not containers"
SLOW = " and ".join(  # more seconds than they have ever been the first to find something for
    f"not {name}"
    for name in (
        "duality_gap",
        "first_images_are",
        "euler_of_many",
        "every_method_runs",
        "observing_changes",
        "multiplying_a",
        "intervals_cover",
    )
)


@dataclass(frozen=True)
class Outcome:
    """``killed`` by the test of that name, or by ``time`` or ``import``; ``survived`` where every test passed."""

    killed: bool
    by: str
    seconds: float


class _Planted(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    def __init__(self, file: str, code: str) -> None:
        self.path, self.code = ROOT / file, code
        self.module = file.removesuffix(".py").replace("/", ".")

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.module else None

    def get_filename(self, fullname):
        return str(self.path)

    def get_data(self, path):
        return self.code.encode()


class _First:
    """The first test that failed, or the file that could not be collected."""

    name = ""

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.name = self.name or report.nodeid

    def pytest_collectreport(self, report):
        if report.failed:
            self.name = self.name or f"import of {report.nodeid}"


def warm() -> None:
    """Imports what takes long: all of ours, which is then forgotten, so that only what is not ours stays."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("hypothesis", "torchjd.autojac", "marble_core.services.local", *OURS):
            importlib.import_module(name)
        import builders

        builders.SmallModel()  # what diffusers and torch import on first use
    sys.modules["torch"].set_num_threads(1)
    for name in [n for n in sys.modules if n.partition(".")[0] in ("marble_core", *OURS)]:
        del sys.modules[name]


def outcome(file: str, code: str, tests: tuple[str, ...], seconds: int = 120, only: str = SLOW) -> Outcome:
    """Of ``tests``, until the first fails, with ``code`` in the place of ``file``, in at most so many seconds of the processor's."""
    ast.parse(code)
    told, tell = os.pipe()
    if not (child := os.fork()):
        os.close(told)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        os.chdir(ROOT)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.meta_path.insert(0, _Planted(file, code))
        first = _First()
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-k", only, "-m", QUICK, *tests], plugins=[first])
        os.write(tell, f"{json.dumps([int(status), first.name])}\n".encode())
        os._exit(0)
    os.close(tell)
    with os.fdopen(told) as pipe:
        said = pipe.readline()  # not to its end: a fork made meanwhile holds the other end open too
    _, _, used = os.wait4(child, 0)
    spent = round(used.ru_utime + used.ru_stime, 1)
    if not said:
        return Outcome(True, "time or a crash", spent)
    status, name = json.loads(said)
    assert status in (0, 1, 2), f"pytest ended with status {status}"
    return Outcome(bool(status), name or ("import" if status else ""), spent)
