"""A schedule's nights: one run fails, one is refused, one raises an alarm, one promotes. Four notices reach a server, and a list has all."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from chat_endpoint import endpoint
from cluster_commands import Marble
from marble_core import stages
from marble_core.config.loading import load_config
from marble_core.config.schema import RunConfig
from marble_core.evaluation.decision_file import write_decision
from marble_core.evaluation.gate import decide
from marble_core.evaluation.results import Alarm, Estimate, Evaluation, RewardResult
from marble_core.evaluation.watch import Look
from marble_core.runtime.environment import KFP_RUN, KUBEFLOW_PAGE, WEBHOOK
from marble_core.storage.s3 import S3
from marble_core.tracking.kubeflow_page import kubeflow_tags
from marble_core.tracking.registry import log_adapter
from marble_core.tracking.tracker import Tracker
from marble_core.training.loop import _show_look
from marble_core.types import MarbleError
from stub_kfp import StubKfp

PAGES = "https://kubeflow.example/_/pipeline/?ns=team"
GAIN, NONE = Estimate(0.2, 0.1, 0.3), Estimate(0.01, -0.1, 0.1)


class Night:
    """One run of the schedule, in its own pod: what prepare leaves, and the stages that follow."""

    def __init__(self, name: str, root: Path, bucket: S3, patch: pytest.MonkeyPatch, *overrides: str) -> None:
        patch.setenv(KFP_RUN, name)
        where = ["registry.model=nights", f"storage.bucket={bucket.bucket}", *overrides]
        self.config: RunConfig = load_config("demo", overrides=where)
        self.name, self.root = name, root / name
        for each in ("prepared", "adapter", "evaluation"):
            (self.root / each).mkdir(parents=True)
        (self.root / "prepared" / "config.json").write_text(self.config.to_json())
        (self.root / "prepared" / "run.json").write_text(json.dumps({"run_id": name}))
        (self.root / "prepared" / "train.jsonl").write_text("\n")
        (self.root / "prepared" / "watched.jsonl").write_text("\n")
        self.tracker = Tracker.start("marble", name, name, "prepare", tags=kubeflow_tags())

    def trains(self) -> None:
        stages.train(self.root / "prepared", self.root / "adapter")

    def registers(self, gain: Estimate) -> None:
        """What train and evaluate leave, and the register stage on it."""
        adapter, evaluated = self.root / "adapter", self.root / "evaluation"
        save_file({"transformer.x.lora_A.weight": torch.ones(2, 2)}, adapter / "pytorch_lora_weights.safetensors")
        (adapter / "history.jsonl").write_text("")
        log_adapter(adapter, "/base", self.tracker.mlflow_run_id, 1)
        reward = RewardResult(96, 0.5, 0.5 + gain.mean, gain, base_std=0.4, win_rate=0.5)
        found = Evaluation({"ocr": reward}, {}, gain)
        found.save(evaluated / "evaluation.json")
        (evaluated / "config.json").write_text(self.config.to_json())
        write_decision(evaluated, decide(found, self.config.registry), self.config.registry)
        self.tracker.log_metrics({"evaluation/mean_gain": gain.mean})
        assert self.tracker.flush(30) == 0
        stages.register(self.root / "prepared", adapter, evaluated, self.root / "page.html")

    def looks(self) -> None:
        """One look of its training, which finds that the reward is hacked."""
        alarm = Alarm("reward hacking", "The images lost their edges while ocr rose.")
        _show_look(self.tracker, self.config, self.name, 40, Look(40, "these", GAIN, {}, {}, {}, alarms=(alarm,)))


def test_of_four_nights_each_is_told_in_one_sentence_with_a_link_and_all_are_in_the_schedules_list(
    server: StubKfp, marble: Marble, bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []

    def take(sent: dict[str, Any]) -> tuple[int, bytes]:
        texts.append(sent["text"])
        return 200, b"ok"

    marble("schedule", "create", "nightly", "--cron", "0 3 * * *")
    (schedule,) = server.tables["recurring"]
    monkeypatch.setenv(KUBEFLOW_PAGE, PAGES)
    with endpoint(take) as (address, _):
        monkeypatch.setenv(WEBHOOK, f"{address}/services/SECRET")

        def night(number: int, state: str, *overrides: str) -> Night:
            run = {"run_id": f"night-{number}", "display_name": f"night-{number}", "state": state}
            more = {"created_at": f"2026-01-0{number}T03:00:00+00:00", "recurring_run_id": schedule}
            server.tables["runs"][run["run_id"]] = run | more
            return Night(run["run_id"], tmp_path, bucket, monkeypatch, *overrides)

        with pytest.raises(MarbleError):
            night(1, "FAILED", "train.nodes=2").trains()  # where there is no Kubeflow Trainer
        night(2, "SUCCEEDED").registers(NONE)
        night(3, "RUNNING").looks()
        night(4, "SUCCEEDED").registers(GAIN)
    assert len(texts) == 4 and "SECRET" not in str(texts)
    begins = ("train failed. train.nodes = 2 needs a cluster", "refused: no gain.", "alarm after step 40, reward hacking: The images", "promoted. Version 1 of nights is registered as champion.")  # fmt: skip
    for number, (text, begin) in enumerate(zip(texts, begins, strict=True), 1):
        said, _, link = text.rpartition(" ")
        assert said.startswith(f"Run night-{number}: {begin}") and said.endswith(".") and "\n" not in said
        assert link == f"{PAGES}#/runs/details/night-{number}"
    lines = marble("schedule", "runs", "nightly").splitlines()
    rows = [re.split(r" *│ *", line)[1:-1] for line in lines if "night-" in line]
    assert [row[1:-1] for row in rows] == [
        ["night-4", "SUCCEEDED", "promoted", "+0.200", "1"],
        ["night-3", "RUNNING", "", "", ""],
        ["night-2", "SUCCEEDED", "refused: no gain", "+0.010", ""],
        ["night-1", "FAILED", "", "", ""],
    ]
