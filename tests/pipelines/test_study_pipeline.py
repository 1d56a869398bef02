"""A study as a pipeline: its graph and pods as a cluster reads them, and the text of the study as a stage gets it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster_commands import Marble
from marble_core import __version__
from marble_core.bench.study import Study
from marble_core.runtime.environment import NODES
from marble_core.types import MarbleError
from marble_kubeflow.pipelines.marble import compile_to as compile_marble
from marble_kubeflow.pipelines.settings import read_settings
from marble_kubeflow.pipelines.study import Plan, compile_to

SETTINGS = """
images: {registry: registry.example/team, pull_secrets: [pull]}
authority: {config_map: company-ca}
pods: {train: {retries: 3, cpu_request: "8", memory_limit: 400Gi}, register: {cpu_limit: "1"}}
gpu: {labels: {kueue.x-k8s.io/queue-name: team}, node_selector: {nvidia.com/gpu.product: H100}}
volumes: {cache_claim: models}
labels: {team: vision}
pages: {kubeflow: "https://kubeflow.example/_/pipeline/?ns=team", mlflow: "https://mlflow.example"}
workflow: {keep_hours: 48}
"""
STUDY = {"set": ["hardware.gpus=2"], "seeds": [0, 3], "arms": {"marble": [], "equal weights": ["balance.method=equal"]}}
OF = {"study-cell": "train", "study-report": "register"}


@pytest.fixture
def compiled(marble: Marble, tmp_path: Path) -> tuple[Any, ...]:
    """What ``marble compile --study`` has written, and the usual pipeline with the same settings: specification and platform of each."""
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    (tmp_path / "arms.yaml").write_text(json.dumps(STUDY))
    marble("compile", "--study", "arms.yaml", "--settings", "settings.yaml", "--output", "study-pipeline.yaml")
    usual = compile_marble(tmp_path / "usual.yaml", read_settings(tmp_path / "settings.yaml"))
    return tuple(d for file in (tmp_path / "study-pipeline.yaml", usual) for d in yaml.safe_load_all(file.read_text()))


def test_the_graph_is_a_loop_over_the_cells_and_the_report_behind_it(compiled: tuple[Any, ...], marble: Marble) -> None:
    spec = compiled[0]
    tasks = spec["root"]["dag"]["tasks"]
    (loop,) = (name for name in tasks if name != "study-report")
    cells = json.loads(tasks[loop]["parameterIterator"]["items"]["raw"])
    arms = ("marble", "equal weights")
    assert [(each["arm"], each["seed"]) for each in cells] == [(arm, seed) for seed in "03" for arm in arms]
    assert tasks["study-report"]["dependentTasks"] == [loop]
    (cell,) = spec["components"][tasks[loop]["componentRef"]["name"]]["dag"]["tasks"].values()
    for task in (cell, tasks["study-report"]):
        assert not task.get("cachingOptions", {}).get("enableCache")
        assert Study.of(json.loads(task["inputs"]["parameters"]["study"]["runtimeValue"]["constant"]), "x") == Study.of(
            STUDY, "x"
        )
    sent = marble("submit", "study-pipeline.yaml", "--dry-run", "--param", "gpus=1").json
    assert sent["tags"] == {"marble.version": __version__, "marble.image": f"marble-train:{__version__}"}
    assert sent["pipeline"] == "marble-study" and sent["parameters"] == {"gpus": "1"}
    assert spec["root"]["inputDefinitions"]["parameters"]["gpus"]["defaultValue"] == "2", "of the arm that wants most"
    assert spec["root"]["inputDefinitions"]["parameters"]["name"]["defaultValue"] == "arms", "the file's name"


def test_a_cells_pod_is_that_of_train_and_the_reports_that_of_register_but_for_their_names(compiled: tuple[Any, ...]) -> None:
    spec, platform, usual, usual_platform = compiled
    pods, others = (
        {n: dict(p) for n, p in each["platforms"]["kubernetes"]["deploymentSpec"]["executors"].items()}
        for each in (platform, usual_platform)
    )
    for name, stage in OF.items():
        own, other = pods[f"exec-{name}"], others[f"exec-{stage}"]
        assert own["podMetadata"]["labels"].pop("marble/stage") == name
        assert other["podMetadata"]["labels"].pop("marble/stage") == stage
        other["fieldPathAsEnv"] = [
            each for each in other["fieldPathAsEnv"] if not each["name"].startswith("POD_")
        ]  # of a TrainJob
        assert own == other, name
        containers = [
            each["deploymentSpec"]["executors"][f"exec-{n}"]["container"] for each, n in ((spec, name), (usual, stage))
        ]
        found = [{v["name"]: v["value"] for v in c["env"] if v["name"] != NODES} for c in containers]
        assert found[0] == found[1] and containers[0]["image"] == containers[1]["image"]
        asked = [{k: v for k, v in c["resources"].items() if k != "accelerator"} for c in containers]
        assert asked[0] == asked[1]
    assert platform["platforms"]["kubernetes"]["pipelineConfig"] == usual_platform["platforms"]["kubernetes"]["pipelineConfig"]
    accelerator = spec["deploymentSpec"]["executors"]["exec-study-cell"]["container"]["resources"]["accelerator"]
    assert accelerator["resourceCount"] == "{{$.inputs.parameters['pipelinechannel--gpus']}}"
    assert "accelerator" not in spec["deploymentSpec"]["executors"]["exec-study-report"]["container"]["resources"]


def test_nothing_on_its_way_finds_what_it_would_resolve_in_a_study(tmp_path: Path) -> None:
    """Argo and KFP resolve {{...}}, the kubelet $(...), and kfp.local puts a path for the word python3."""
    file = {"set": ["data.train={a: '{{inputs}} $(HOME) {{{$.x}}}'}", "x=python3"], "arms": {"a": []}}
    text = Plan("s", file, [("a", 0)]).text
    assert not any(mark in text for mark in ("{{", "$", "python3")) and json.loads(text) == file
    compiled = compile_to(tmp_path / "p.yaml", Plan("s", file, [("a", 0)])).read_text()
    assert "inputs}} $" not in compiled


def test_a_study_that_is_too_large_or_has_a_name_that_s3_cannot_have_is_refused(marble: Marble, tmp_path: Path) -> None:
    (tmp_path / "a b.yaml").write_text(json.dumps(STUDY))
    assert "run id 'a b' must be" in marble("compile", "--study", "a b.yaml", code=2).error
    large = {"arms": {"a" * 30 + str(k): [] for k in range(3000)}}
    with pytest.raises(MarbleError, match=r"has 12\d kB and Kubernetes takes 100: put prompts into files"):
        compile_to(tmp_path / "p.yaml", Plan("s", large, [("a", 0)]))
