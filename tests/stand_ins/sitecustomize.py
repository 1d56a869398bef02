"""Stands in for the stages that need a GPU, in processes whose PYTHONPATH begins with this directory.

STAND_IN says what the trained model is worth: ``better``, ``worse``; or what the train stage does instead: ``mendable`` (a
MarbleError), ``broken`` (any other error), ``hangs`` (until it is told to end, then saves to S3).
"""

import os
import signal
from pathlib import Path

from marble_core import stages
from marble_core.config.loading import load_config
from marble_core.evaluation.decision_file import write_decision
from marble_core.evaluation.gate import decide
from marble_core.evaluation.results import Estimate, Evaluation, RewardResult
from marble_core.runtime import progress
from marble_core.storage.s3 import S3
from marble_core.tracking import registry
from marble_core.types import MarbleError

KIND = os.environ.get("STAND_IN")


def train(prepared: Path, out: Path) -> dict[str, float]:
    with progress.stage("train"):
        for step in (1, 2):
            metrics = {"reward/ocr/mean": 0.5 + step / 10, "alpha/ocr": 1.0, "cosine/worst": 0.25}
            progress.emit("train", step, 2, metrics=metrics)
        if KIND == "mendable":
            raise MarbleError("The reward 'ocr' needs a wheel: pip install it.")
        if KIND == "broken":
            raise RuntimeError("the stage broke here")
        if KIND == "hangs":
            signal.signal(signal.SIGTERM, save_and_end)
            progress.emit("train", note=f"pid {os.getpid()}")
            signal.pause()
        out.mkdir(parents=True)
        (out / "pytorch_lora_weights.safetensors").write_bytes(b"")
    return {"reward/ocr/mean": 0.7}


def save_and_end(*_: object) -> None:
    S3("marble").put_json("checkpoint", {})
    progress.emit("train", note="saved")
    os._exit(1)


def evaluate(prepared: Path, adapter: Path, out: Path, report: Path) -> dict[str, float]:
    with progress.stage("evaluate") as result:
        gain = 0.2 if KIND == "better" else -0.2
        difference = Estimate(gain, gain - 0.05, gain + 0.05)
        reward = RewardResult(n=96, base=0.5, trained=0.5 + gain, difference=difference, base_std=0.3, win_rate=0.6)
        assert (adapter / "pytorch_lora_weights.safetensors").exists()
        out.mkdir(parents=True)
        (out / "config.json").write_text((prepared / "config.json").read_text())
        evaluation = Evaluation({"ocr": reward}, {}, difference)
        evaluation.save(out / "evaluation.json")
        section = load_config("demo").registry
        write_decision(out, decide(evaluation, section), section)
        report.write_text("<!doctype html><title>report</title>")
        result |= {"evaluation": str(out / "evaluation.json"), "report": str(report)}
    return {"ocr": gain}


if KIND:
    stages.train, stages.evaluate = train, evaluate
if KIND == "better":  # no LoRA was logged that could be registered
    registry.register_version = lambda *_, **__: ("7", "champion")
