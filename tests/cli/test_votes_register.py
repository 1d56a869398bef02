"""A gate that asks for people: what evaluate refuses for want of votes, votes add lets register make the champion."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import save_file

from commands import run_marble
from marble_core import stages
from marble_core.report import shown_files
from marble_core.tracking.registry import log_adapter
from marble_core.tracking.tracker import Tracker, run_params
from vote_builders import lay_out_vote, voted_config, votes_of, write_votes


@pytest.mark.services
@pytest.mark.parametrize("where", ["disk", "mlflow"])
def test_once_people_prefer_it_a_run_that_waited_for_votes_is_the_champion(
    where: str, services: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"voted-{uuid.uuid4().hex[:8]}"
    config = voted_config(0.5)
    config = config.model_copy(
        update={
            "registry": config.registry.model_copy(update={"model": name}),
            "storage": config.storage.model_copy(update={"experiment": name}),
        }
    )
    runs = Path(".marble/runs") if where == "disk" else Path("of-a-cluster")
    here = lay_out_vote(runs, name, config=config)
    prepared, adapter = here.parents[1] / "prepare" / "prepared", here.parents[1] / "train" / "adapter"
    prepared.mkdir(parents=True)
    (prepared / "config.json").write_text(config.to_json())
    (prepared / "run.json").write_text(json.dumps({"run_id": name}))
    save_file({"transformer.x.lora_A.weight": torch.ones(2, 2)}, adapter / "pytorch_lora_weights.safetensors")
    tracker = Tracker.start(name, name, name, "evaluate", run_params(config))
    log_adapter(adapter, "/base", tracker.mlflow_run_id, 6)
    tracker.log_text(config.to_json(), "config.json")
    for file in ("evaluation.json", "decision.json"):
        tracker.log_artifact(here / file)
    for path in shown_files(here / "images"):
        tracker.log_artifact(path, "evaluation")
    tracker.end("RUNNING")
    refused = stages.register(prepared, adapter, here, tmp_path / "page.html")
    assert (refused.version, refused.decision.verdict) == ("", "not measured")

    write_votes(Path("ann.json"), votes_of(here, "ann", lambda prompt, rival: "trained"))
    assert run_marble("votes", "add", name, "ann.json", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert "without the last 42 it was: refused: not measured. Now: promoted." in said
    assert f"Version 1 of {name} is registered as champion." in said
    assert ("report.html and explorer.html there stay as they were." in said) == (where == "mlflow")
    assert run_marble("votes", "add", name, "ann.json", monkeypatch=monkeypatch) == 0
    again = capsys.readouterr().out
    assert "42 votes of ann: counted before" in again and f"Version 1 of {name} is registered as champion." in again
    client = MlflowClient()
    assert str(client.get_model_version_by_alias(name, "champion").version) == "1"
    description = client.get_model_version(name, "1").description
    assert "Of people: it won 100 %" in description and "Decided anew with 42 blind votes" in description
    if where == "mlflow":
        (run,) = client.search_runs(
            [tracker.experiment_id], f"attributes.run_name = '{name}' and tags.`marble.run_id` = '{name}'"
        )
        assert run.data.metrics["evaluation/votes"] == 1.0
        assert "counted_votes.json" in {file.path for file in client.list_artifacts(run.info.run_id)}
