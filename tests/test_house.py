"""The rules of the house that a reader of the source can check: who imports whom, and who reads what could run code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from conftest import ROOT

SOURCES = [path for package in ("marble_core", "pipelines", "components") for path in sorted((ROOT / package).rglob("*.py"))]
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}

# docs/architecture.md, section 2: a later row may import an earlier one, never the reverse, and never sideways within a set.
ROWS = (
    ("types", "config"),
    ("advantages", "loss", "minnorm", "balance", "halves", "gradients"),
    ("models", "rewards", "policy", "rollout", "prompts"),
    ("passes", "direction"),
    ("step",),
    ("train", "evaluate", "registry"),
    ("stages",),
    ("cli",),
)
APART = ({"models", "rewards"}, {"models", "prompts"}, {"rewards", "policy"}, {"train", "evaluate"})


def imports(tree: ast.Module) -> Iterator[str]:
    """The modules that a file imports, inside functions too, but for those that it names in types alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def part(module: str) -> str:
    """``marble_core.rewards.clip`` -> ``rewards``."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "marble_core" else ""


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a dotted name: ("torch.load", the call)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_imports_go_one_way() -> None:
    row_of = {name: row for row, names in enumerate(ROWS) for name in names}
    wrong = []
    for file, tree in TREES.items():
        own = part(file.removesuffix(".py").replace("/", "."))
        for other in {part(module) for module in imports(tree)} - {own}:
            later = own in row_of and row_of.get(other, -1) > row_of[own]
            sideways = any({own, other} <= apart for apart in APART)
            if later or sideways:
                wrong.append(f"{file} imports {other}")
    assert wrong == []


def test_only_the_command_line_knows_the_pipelines_and_only_these_know_kfp() -> None:
    for file, tree in TREES.items():
        roots = {module.partition(".")[0] for module in imports(tree)}
        if file.startswith("marble_core/"):
            assert "kfp" not in roots, file
            assert file.startswith("marble_core/cli/") or not roots & {"marble_kubeflow"}, file


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


def test_these_rules_see_what_breaks_them() -> None:
    tree = ast.parse(
        "import kfp\ndef f():\n    from marble_core.training.loop import start\n    torch.load(x)\n    yaml.load(y)"
    )
    assert {"kfp", "marble_core.training.loop"} <= set(imports(tree)) and {"torch.load", "yaml.load"} == {
        name for name, _ in calls(tree)
    }
    assert part("marble_core.rewards.clip") == "rewards" and part("torch.load") == ""


def test_what_is_installed_is_what_is_pinned_every_file_by_its_hash() -> None:
    """torch alone is not: its build is the user's choice."""
    pinned = re.findall(r"^([\w.-]+==\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    locked = re.findall(r"^([\w.-]+==\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})*)$", (ROOT / "constraints.hashes.txt").read_text(), re.MULTILINE)  # fmt: skip
    assert all(hashes for _, hashes in locked)

    def names(pins: list[str]) -> set[str]:
        return {re.sub(r"[-_.]+(?=.*==)", "-", pin).lower() for pin in pins}

    assert names(pinned) - names([pin for pin, _ in locked]) == {"torch==2.13.0"}, "run: make lock"
    assert names([pin for pin, _ in locked]) <= names(pinned), "run: make lock"
