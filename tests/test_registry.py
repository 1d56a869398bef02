"""The gate's scenarios, and a real MLflow: version, aliases, tags, and a LoRA that loads at its full strength."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from marble_core.config import RegistryConfig
from marble_core.registry import MODEL_URI_TAG, decide, log_adapter, record_refusal, register_version
from marble_core.results import Estimate, Evaluation, RewardResult
from marble_core.types import MarbleError

GATE = RegistryConfig(margin=0.1)


def evaluation(gain: Estimate, missing: tuple[str, ...] = (), **differences: tuple[float, float, float]) -> Evaluation:
    """Rewards whose base has mean 0.5 and std 0.4, with the given difference (mean, low, high)."""
    rewards = {
        name: RewardResult(96, 0.5, 0.5 + d[0], Estimate(*d), base_std=0.4, win_rate=0.5) for name, d in differences.items()
    }
    return Evaluation(rewards, {}, gain, missing, settings={"solver": "euler", "steps": 12, "noise_seed": 4242})


CLEAR, UNCLEAR = Estimate(0.2, 0.1, 0.3), Estimate(0.02, -0.01, 0.05)
BETTER = evaluation(CLEAR, geneval=(0.2, 0.1, 0.3), clipscore=(0.0, -0.01, 0.01))
WORSE = evaluation(CLEAR, geneval=(0.4, 0.3, 0.5), clipscore=(-0.08, -0.12, -0.05))


@pytest.mark.parametrize(
    ("given", "verdict", "says"),
    [
        (BETTER, "promoted", "Shown to be better: geneval +0.200 (+0.100 to +0.300)."),
        (WORSE, "worse", "clipscore got worse by -0.080 (-0.120 to -0.050), an interval that lies wholly below -0.040"),
        (evaluation(UNCLEAR, ocr=(0.01, -0.02, 0.04)), "no gain", "+0.020 (-0.010 to +0.050) base standard deviations"),
        (evaluation(CLEAR, ocr=(-0.04, -0.09, -0.03)), "promoted", "an interval that lies above 0"),
        (evaluation(CLEAR, ("ocr",), geneval=(0.2, 0.1, 0.3)), "not measured", "ocr applies to no held-out prompt"),
        (evaluation(Estimate(0.0, 0.0, 0.0), ocr=(0.0, 0.0, 0.0)), "no gain", "does not lie above 0"),
    ],
    ids=["better", "worse on one", "noise only", "harm possible but not shown", "missing metric", "a LoRA that does nothing"],
)
def test_the_gate_decides_with_the_numbers_in_words(given: Evaluation, verdict: str, says: str) -> None:
    decision = decide(given, GATE)
    assert decision.verdict == verdict
    assert decision.promote == (verdict == "promoted")
    assert any(says in reason for reason in decision.reasons), decision.reasons
    assert all(r[0].upper() == r[0] or r.startswith(("ocr", "clipscore")) for r in decision.reasons)
    assert all(r.endswith(".") for r in decision.reasons)


def test_the_margin_is_measured_in_base_standard_deviations() -> None:
    assert decide(WORSE, RegistryConfig(margin=0.2)).promote
    assert not decide(WORSE, RegistryConfig(margin=0.12)).promote


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the demo model, rank 2 and alpha 6, as diffusers saves it, beside train's history."""
    import torch
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    from marble_core.assets import resolve

    lora = LoraConfig(r=2, lora_alpha=6, target_modules=["attn.to_q"], init_lora_weights="gaussian")
    transformer = SD3Transformer2DModel.from_pretrained(
        resolve("demo://sd3"), subfolder="transformer", torch_dtype=torch.float32
    )
    transformer.add_adapter(lora)
    directory = tmp_path_factory.mktemp("adapter")
    metadata = lora.to_dict() | {"target_modules": sorted(lora.target_modules)}
    StableDiffusion3Pipeline.save_lora_weights(
        directory, transformer_lora_layers=get_peft_model_state_dict(transformer), transformer_lora_adapter_metadata=metadata
    )
    (directory / "history.jsonl").write_text("{}\n")
    return directory


@pytest.fixture
def run_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A run in an MLflow on sqlite, whose experiment keeps its artifacts in a place of its own."""
    import mlflow

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("marble", artifact_location=f"file://{tmp_path}/artifacts")
    run = client.create_run(experiment)
    client.log_param(run.info.run_id, "lora.rank", 2)
    yield run.info.run_id
    mlflow.set_tracking_uri(before)


def test_a_promoted_lora_is_the_champion_and_loads_at_its_full_strength(run_id: str, adapter: Path, tmp_path: Path) -> None:
    import mlflow
    import torch

    from marble_core.assets import resolve

    uri = log_adapter(adapter, str(resolve("demo://sd3")), run_id, step=24, metadata={"rewards": ["geneval", "clipscore"]})
    version = register_version("marble", BETTER, decide(BETTER, GATE), run_id, "0123456789ab")

    client = mlflow.MlflowClient()
    found = client.get_model_version_by_alias("marble", "champion")
    assert str(found.version) == version and found.run_id == run_id and found.source == uri
    assert found.tags["marble.decision"] == "promoted" and found.tags["marble.config_digest"] == "0123456789ab"
    assert found.tags["reward.geneval"] == "0.5000 -> 0.7000" and float(found.tags["marble.mean_gain"]) == 0.2
    assert "| geneval | 96 | 0.500 | 0.700 | +0.200 (+0.100 to +0.300) |" in found.description
    assert client.get_run(run_id).data.tags[MODEL_URI_TAG] == uri

    loaded = mlflow.diffusers.load_model("models:/marble@champion")
    assert os.listdir(loaded.adapter_path) == ["pytorch_lora_weights.safetensors"]
    assert str(tmp_path / "artifacts") in loaded.adapter_path, "the model lies in another place than its experiment's artifacts"
    pipeline = loaded.load_pipeline(torch_dtype=torch.float32, device="cpu")
    scalings = {s for m in pipeline.transformer.modules() for s in getattr(m, "scaling", {}).values()}
    assert scalings == {6 / 2}


def test_champion_and_challenger_follow_the_decisions(run_id: str, adapter: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    experiment = client.get_run(run_id).info.experiment_id
    better, worse = decide(BETTER, GATE), decide(WORSE, GATE)

    def register(given: Evaluation, run: str) -> str:
        client.set_tag(run, MODEL_URI_TAG, "models:/" + client.create_logged_model(experiment, source_run_id=run).model_id)
        return register_version("marble", given, decide(given, GATE), run, "digest")

    def aliases() -> dict[str, str]:
        return {a: str(v) for a, v in client.get_registered_model("marble").aliases.items()}

    first = register(BETTER, run_id)
    assert aliases() == {"champion": first}
    assert register_version("marble", BETTER, better, run_id, "digest") == first, "a restarted stage made a second version"
    second = register(WORSE, client.create_run(experiment).info.run_id)
    assert aliases() == {"champion": first, "challenger": second}
    assert client.get_model_version("marble", second).tags["marble.decision"] == worse.summary == "refused: worse"
    third = register(BETTER, client.create_run(experiment).info.run_id)
    assert aliases() == {"champion": third}
    assert client.get_model_version("marble", third).tags["marble.previous_champion"] == first


def test_a_refusal_is_recorded_in_the_run_and_makes_no_version(run_id: str) -> None:
    import mlflow

    record_refusal(WORSE, decide(WORSE, GATE), run_id)
    tags = mlflow.MlflowClient().get_run(run_id).data.tags
    assert tags["marble.decision"] == "refused: worse" and "clipscore got worse" in tags["marble.reasons"]
    assert mlflow.MlflowClient().search_registered_models() == []


def test_a_run_without_a_lora_and_an_mlflow_that_refuses_are_one_sentence(run_id: str, tmp_path: Path) -> None:
    with pytest.raises(MarbleError, match="logged no LoRA"):
        register_version("marble", BETTER, decide(BETTER, GATE), run_id, "digest")
    with pytest.raises(MarbleError, match=r"holds no pytorch_lora_weights\.safetensors"):
        log_adapter(tmp_path, "base", run_id, step=0)
    with pytest.raises(MarbleError, match=r"MLflow at sqlite:.* refused: .*; check MLFLOW_TRACKING_URI"):
        record_refusal(WORSE, decide(WORSE, GATE), "0" * 32)
