"""The rules of the house that a reader of the source can check: who imports whom, and who reads what could run code."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from paths import ROOT, TESTS

SOURCES = [path for package in ("marble_core", "pipelines", "components") for path in sorted((ROOT / package).rglob("*.py"))]
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def imports(tree: ast.Module) -> Iterator[str]:
    """The modules that a file imports, inside functions too, but for those that it names in types alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a dotted name: ("torch.load", the call)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_pickled_tensors_are_read_in_one_file_as_weights_only() -> None:
    found = [(file, call) for file, tree in TREES.items() for name, call in calls(tree) if name == "torch.load"]
    assert {file for file, _ in found} == {"marble_core/rewards/weights/originals.py"}
    for _, call in found:
        (weights_only,) = [k.value for k in call.keywords if k.arg == "weights_only"]
        assert isinstance(weights_only, ast.Constant) and weights_only.value is True


@pytest.mark.parametrize("writer", ["torch.save", "pickle.dump", "pickle.dumps", "pickle.load", "pickle.loads", "marshal.loads", "joblib.dump", "eval", "exec"])  # fmt: skip
def test_nothing_is_pickled_and_no_text_is_run(writer: str) -> None:
    assert [file for file, tree in TREES.items() for name, _ in calls(tree) if name == writer] == []


def test_nothing_that_pickles_is_imported() -> None:
    modules = {"shelve", "marshal", "joblib", "cloudpickle", "dill"}
    assert [file for file, tree in TREES.items() if {m.partition(".")[0] for m in imports(tree)} & modules] == []
    assert [file for file, tree in TREES.items() if "pickle" in set(imports(tree))] == [
        "marble_core/rewards/weights/originals.py"
    ]


def test_yaml_is_read_safely_in_one_file() -> None:
    reads = {"load", "load_all", "full_load", "unsafe_load", "safe_load", "safe_load_all", "compose", "parse"}
    found = {file for file, tree in TREES.items() for name, _ in calls(tree) if name in {f"yaml.{read}" for read in reads}}
    assert found == {"marble_core/config/strict_yaml.py"}
    (loader,) = [n for n in TREES["marble_core/config/strict_yaml.py"].body if isinstance(n, ast.ClassDef)]
    assert [ast.unparse(base) for base in loader.bases] == ["yaml.SafeLoader"]


def in_the_locales_encoding(tree: ast.Module) -> list[str]:
    """The calls that read or write text and do not say how."""
    found = []
    for name, call in calls(tree):
        constants = {a.value for a in call.args if isinstance(a, ast.Constant)}
        text = name.endswith((".read_text", ".write_text")) or (
            name.split(".")[-1] in ("open", "fdopen") and constants & {"r", "w", "a", "x", "r+", "w+", "a+"}
        )
        if text and not any(k.arg == "encoding" for k in call.keywords):
            found.append(f"line {call.lineno}: {name}")
    return found


def test_text_is_utf_8_whatever_the_locale_of_the_machine() -> None:
    assert {file: found for file, tree in TREES.items() if (found := in_the_locales_encoding(tree))} == {}
    assert (
        len(in_the_locales_encoding(ast.parse("a.read_text()\nb.open('w')\nc.open('wb')\nd.write_text(x, encoding='y')"))) == 2
    )


def test_these_rules_see_what_breaks_them() -> None:
    tree = ast.parse(
        "import kfp\ndef f():\n    from marble_core.training.loop import start\n    torch.load(x)\n    yaml.load(y)"
    )
    assert {"kfp", "marble_core.training.loop"} <= set(imports(tree)) and {"torch.load", "yaml.load"} == {
        name for name, _ in calls(tree)
    }


def imports_of_tests(tree: ast.Module) -> set[str]:
    """The test modules and conftest files that a file imports, wherever they lie."""
    parts = {part for module in imports(tree) for part in module.split(".")}
    return {part for part in parts if part.startswith("test_") or part == "conftest"}


def test_what_tests_share_lies_in_modules_that_are_no_tests() -> None:
    files = sorted(TESTS.rglob("*.py"))
    found = {path.relative_to(TESTS).as_posix(): imports_of_tests(ast.parse(path.read_text("utf-8"))) for path in files}
    assert {file: names for file, names in found.items() if names} == {}
    for line in (
        "from test_step import learner",
        "import test_step",
        "from tests.cli import test_step",
        "from a.conftest import b",
    ):
        assert imports_of_tests(ast.parse(f"def f():\n    {line}")), line


def test_what_is_installed_is_what_is_pinned_every_file_by_its_hash() -> None:
    """torch has a list of its own, for another build of it may be chosen."""
    pinned = re.findall(r"^([\w.-]+==\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    locked, of_torch = (
        re.findall(r"^([\w.-]+==\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})*)$", (ROOT / file).read_text(), re.MULTILINE)
        for file in ("constraints.hashes.txt", "images/torch.txt")
    )
    assert all(hashes for _, hashes in [*locked, *of_torch])

    def names(pins: list[str]) -> set[str]:
        return {re.sub(r"[-_.]+(?=.*==)", "-", pin).lower() for pin in pins}

    assert names(pinned) - names([pin for pin, _ in locked]) == {"torch==2.13.0"}, "run: make lock"
    assert names([pin for pin, _ in locked]) <= names(pinned), "run: make lock"
    versions = dict(pin.split("==") for pin in names(pinned))
    assert {"torch==2.13.0"} <= {pin for pin, _ in of_torch}, "run: make lock"
    assert [pin for pin, _ in of_torch if versions.get(pin.split("==")[0], pin.split("==")[1]) != pin.split("==")[1]] == []


OVER = "over {} lines because"  # what a docstring says where a file or a function cannot be shorter
FILES = {
    **TREES,
    **{path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in TESTS.rglob("*.py")},
}


def test_no_file_is_over_300_lines_and_no_function_over_60_without_a_sentence_why() -> None:
    long = []
    for file, tree in FILES.items():
        lines = len((ROOT / file).read_text(encoding="utf-8").splitlines())
        if lines > 300 and OVER.format(300) not in (ast.get_docstring(tree) or ""):
            long.append(f"{file}: {lines}")
        todo: list[ast.AST] = [tree]
        while todo:
            node = todo.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if OVER.format(60) in (ast.get_docstring(node) or ""):
                    continue  # what is nested in it is excused too
                if (count := (node.end_lineno or 0) - node.lineno + 1) > 60:
                    long.append(f"{file}: {node.name} {count}")
            todo += ast.iter_child_nodes(node)
    assert long == []


def test_the_step_is_one_file_of_a_hundred_lines() -> None:
    assert len((ROOT / "marble_core/step.py").read_text(encoding="utf-8").splitlines()) <= 100


BREACHES = [  # a module, an import that it must not have, the contract that forbids it
    ("report/words.py", "from marble_core.rewards import registry", "report reads results"),
    ("tracking/metric_glossary.py", "from marble_core.prompts import mixing", "tracking knows what was configured"),
    ("algorithm/losses.py", "from marble_core.storage import s3", "algorithm is mathematics"),
    ("rewards/clip.py", "from marble_core.models import policy", "rewards score images"),
    ("prompts/mixing.py", "from marble_core.training import loop", "the house"),
    ("heap.py", "import json", "the house"),
]


@pytest.mark.parametrize(("module", "line", "contract"), BREACHES, ids=[module for module, _, _ in BREACHES])
def test_an_import_against_the_grain_fails_the_contracts(module: str, line: str, contract: str, tmp_path: Path) -> None:
    for package in ("marble_core", "marble_kubeflow"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    shutil.copytree(ROOT / "marble_core/rewards/weights", tmp_path / "marble_core/rewards/weights", dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    file = tmp_path / "marble_core" / module
    old = file.read_text(encoding="utf-8") if file.exists() else '"""A module at the root."""\n'
    file.write_text(f"{old}\n{line}\n", encoding="utf-8")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    broken = [said for said in done.stdout.splitlines() if said.endswith("BROKEN")]
    assert done.returncode == 1 and any(said.startswith(contract) for said in broken), done.stdout + done.stderr


TORCH_FREE = ("prepare", "register")


def test_no_stage_but_train_and_evaluate_imports_torch() -> None:
    """What each of these stages imports, with the functions of stages.py that it calls, in a process of its own."""
    functions = {node.name: node for node in TREES["marble_core/stages.py"].body if isinstance(node, ast.FunctionDef)}
    for stage in TORCH_FREE:
        called, todo = set(), [stage]
        while todo:
            called.add(name := todo.pop())
            todo += {n.id for n in ast.walk(functions[name]) if isinstance(n, ast.Name)} & functions.keys() - called
        lines = [ast.unparse(n) for name in called for n in ast.walk(functions[name]) if isinstance(n, ast.ImportFrom)]
        code = "\n".join(["import sys", "from marble_core import stages", *lines, "assert 'torch' not in sys.modules"])
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert lines, stage
        assert done.returncode == 0, f"{stage}: {done.stderr}"
