"""The pipeline's graph as a cluster reads it, and its components as a folder each."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kfp import components as kfp_components

import components
from conftest import ROOT
from marble_core import __version__
from pipelines.marble import PACKAGE, compile_to

STAGES = ("prepare", "train", "evaluate", "gate", "register", "reject")


@pytest.fixture(scope="module")
def spec() -> dict:
    return yaml.safe_load(PACKAGE.read_text())


def test_the_committed_pipeline_is_what_its_source_compiles_to(tmp_path: Path) -> None:
    assert compile_to(tmp_path / "marble.yaml").read_bytes() == PACKAGE.read_bytes(), "run: python -m pipelines.marble"


def test_kfp_loads_the_pipeline_with_its_three_plain_parameters() -> None:
    loaded = kfp_components.load_component_from_file(str(PACKAGE))
    assert {name: spec.type for name, spec in loaded.component_spec.inputs.items()} == dict.fromkeys(
        ("preset", "config", "run_id"), "String"
    )


def test_every_stage_names_its_own_image_and_installs_nothing(spec: dict) -> None:
    executors = {n.removeprefix("exec-"): e["container"] for n, e in spec["deploymentSpec"]["executors"].items()}
    assert {stage: container["image"] for stage, container in executors.items()} == {
        stage: f"marble-{stage}:{__version__}" for stage in STAGES
    }
    assert "pip" not in str([container["command"] for container in executors.values()])


def test_the_registry_is_named_when_the_pipeline_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARBLE_REGISTRY", "registry.example/team/")
    assert components.image("train") == f"registry.example/team/marble-train:{__version__}"


def walk(spec: dict, dag: dict) -> Iterator[tuple[str, dict]]:
    """Every task of a graph, and of the graphs inside it."""
    for name, task in dag["tasks"].items():
        yield name, task
        if inner := spec["components"][task["componentRef"]["name"]].get("dag"):
            yield from walk(spec, inner)


def test_the_gate_is_one_bool_and_both_its_branches_are_drawn(spec: dict) -> None:
    assert spec["components"]["comp-gate"]["outputDefinitions"] == {"parameters": {"Output": {"parameterType": "BOOLEAN"}}}
    tasks = dict(walk(spec, spec["root"]["dag"]))
    branches = [spec["components"][t["componentRef"]["name"]]["dag"]["tasks"] for t in tasks.values() if "triggerPolicy" in t]
    assert [list(branch) for branch in branches] == [["register"], ["reject"]]
    passed, refused = (t["triggerPolicy"]["condition"] for t in tasks.values() if "triggerPolicy" in t)
    assert "gate-Output" in passed and refused == f"!({passed})"


def test_no_task_may_be_answered_from_a_cache(spec: dict) -> None:
    tasks = {name: task for name, task in walk(spec, spec["root"]["dag"]) if name in STAGES}
    assert set(tasks) == set(STAGES)
    assert not any(task.get("cachingOptions", {}).get("enableCache") for task in tasks.values())


@pytest.mark.parametrize("stage", STAGES)
def test_a_component_is_a_folder_with_one_short_file_that_calls_one_stage(stage: str) -> None:
    folder = ROOT / "components" / stage
    source = (folder / "component.py").read_text()
    assert len(source.splitlines()) <= 60
    assert f"stages.{stage}(" in source
    metadata = yaml.safe_load((folder / "metadata.yaml").read_text())
    assert metadata["name"] == stage and metadata["image"] == f"marble-{stage}"
    assert (folder / "README.md").read_text().startswith(f"# {stage}\n")
