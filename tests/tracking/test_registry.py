"""A real MLflow: the version and its card, aliases, tags, the way back, and a LoRA that loads at its full strength."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from marble_core.cli import app
from marble_core.config.loading import load_config
from marble_core.evaluation.gate import Decision
from marble_core.evaluation.results import Estimate, Evaluation, RewardResult
from marble_core.tracking.model_card import write_card
from marble_core.tracking.registry import (
    MODEL_URI_TAG,
    fetch_champion,
    log_adapter,
    record_refusal,
    register_version,
    roll_back,
)
from marble_core.types import MarbleError

CONFIG = load_config("demo")
PROMOTED = Decision(True, "promoted", ("The mean gain is +0.2.",))
REFUSED = Decision(False, "worse", ("clipscore is worse than the base.",))
DIFFERENCE = Estimate(0.2, 0.1, 0.3)
FOUND = Evaluation(
    {n: RewardResult(96, 0.5, 0.7, DIFFERENCE, base_std=0.4, win_rate=0.5) for n in ("geneval", "clipscore")},
    {},
    DIFFERENCE,
    settings={"solver": "euler", "steps": 12, "noise_seed": 4242},
)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the demo model, rank 2 and alpha 6, as diffusers saves it, beside train's history."""
    import torch
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    from marble_core.storage.uri import resolve

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


Aliases = Callable[[], dict[str, str]]


@pytest.fixture
def aliases(run_id: str) -> Aliases:
    import mlflow

    return lambda: {a: str(v) for a, v in mlflow.MlflowClient().get_registered_model("marble").aliases.items()}


def another_lora(run_id: str, adapter: Path, directory: Path, value: float) -> tuple[str, Path]:
    """Logged in a run of its own: the run, and the directory of the LoRA."""
    import mlflow
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(adapter / "pytorch_lora_weights.safetensors", "pt") as file:
        weights = {name: torch.full_like(file.get_tensor(name), value) for name in file.keys()}  # noqa: SIM118 - no mapping
        metadata = file.metadata()
    directory.mkdir()
    save_file(weights, directory / "pytorch_lora_weights.safetensors", metadata)
    client = mlflow.MlflowClient()
    run = client.create_run(client.get_run(run_id).info.experiment_id).info.run_id
    log_adapter(directory, "/base", run, step=1)
    return run, directory


def test_a_promoted_lora_is_the_champion_and_loads_at_its_full_strength(run_id: str, adapter: Path, tmp_path: Path) -> None:
    import mlflow
    import torch

    from marble_core.storage.uri import resolve

    uri = log_adapter(adapter, str(resolve("demo://sd3")), run_id, step=24, metadata={"rewards": ["geneval", "clipscore"]})
    assert log_adapter(adapter, "/elsewhere", run_id, step=24) == uri, "a stage that was started again logged a second model"
    version, alias = register_version(
        CONFIG, FOUND, PROMOTED, tmp_path / "no images", run_id, {"marble.checkpoint": "s3://x"}, cards={}
    )
    assert alias == "champion"

    client = mlflow.MlflowClient()
    found = client.get_model_version_by_alias("marble", "champion")
    assert str(found.version) == version and found.run_id == run_id and found.source == uri
    assert found.tags["marble.decision"] == "promoted" and found.tags["marble.config_digest"] == CONFIG.digest
    assert found.tags["marble.checkpoint"] == "s3://x"
    assert found.tags["marble.reasons"] == "The mean gain is +0.2." and found.tags["marble.base_model"] == "demo://sd3"
    assert found.tags["reward.geneval"] == "0.5000 -> 0.7000" and float(found.tags["marble.mean_gain"]) == 0.2
    row = "| geneval | 96 | 0.500 | 0.700 | +0.200 (+0.100 to +0.300) |"
    assert row in found.description
    page = client.get_run(run_id).data.tags["mlflow.note.content"]
    assert page.startswith("**Promoted.**") and row in page and "This is version 1 of marble, champion." in page
    assert "several rewards at once" in client.get_registered_model("marble").description
    assert client.get_run(run_id).data.tags[MODEL_URI_TAG] == uri

    loaded = mlflow.diffusers.load_model("models:/marble@champion")
    assert os.listdir(loaded.adapter_path) == ["pytorch_lora_weights.safetensors"]
    assert str(tmp_path / "artifacts") in loaded.adapter_path, "the model lies in another place than its experiment's artifacts"
    pipeline = loaded.load_pipeline(torch_dtype=torch.float32, device="cpu")
    scalings = {s for m in pipeline.transformer.modules() for s in getattr(m, "scaling", {}).values()}
    assert scalings == {6 / 2}


def test_aliases_follow_the_decisions_and_a_roll_back_says_who_was_replaced(
    run_id: str, adapter: Path, tmp_path: Path, aliases: Aliases
) -> None:
    import mlflow

    client = mlflow.MlflowClient()

    def register(seen: str | None, decision: Decision, value: float) -> str:
        run, _ = another_lora(run_id, adapter, tmp_path / str(value), value)
        return register_version(CONFIG, replace(FOUND, champion_version=seen), decision, tmp_path, run, cards={})[0]

    with pytest.raises(MarbleError, match="'marble' has no champion to roll back"):
        roll_back("marble")
    first = register(None, PROMOTED, 1.0)
    assert aliases() == {"champion": first}
    with pytest.raises(MarbleError, match=r"Version 1 of 'marble' replaced no other; name one with --to \(there are none\)"):
        roll_back("marble")
    refused = register(first, REFUSED, 2.0)
    assert aliases() == {"champion": first, "challenger": refused}
    second = register(first, PROMOTED, 3.0)
    assert aliases() == {"champion": second}
    overtaken = register(first, PROMOTED, 4.0)
    assert aliases() == {"champion": second, "challenger": overtaken}, "it was compared with a champion of yesterday"
    assert f"version {second} became it after this evaluation" in client.get_model_version("marble", overtaken).description

    assert client.get_model_version("marble", second).tags["marble.previous_champion"] == first
    done = CliRunner().invoke(app, ["rollback", "marble"])
    assert done.stdout == f"Version {first} of marble is the champion again, in place of version {second}.\n", done.output
    assert aliases()["champion"] == first
    assert client.get_model_version("marble", second).tags["marble.rolled_back_to"] == first
    assert client.get_model_version("marble", first).tags["marble.rolled_back_from"] == second
    assert roll_back("marble", to=second) == (first, second)
    for wrong, says in ((second, "is the champion already"), ("77", "does not exist")):
        with pytest.raises(MarbleError, match=rf"Version {wrong} of 'marble' {says}; name another .*there are 4, 2, 1"):
            roll_back("marble", to=wrong)
    assert aliases()["champion"] == second


def test_the_champion_is_fetched_unless_it_is_the_same_lora_or_of_another_base(
    run_id: str, adapter: Path, tmp_path: Path
) -> None:
    log_adapter(adapter, "/base", run_id, step=1)
    assert "has no champion yet" in fetch_champion(CONFIG, adapter, tmp_path / "a").absent
    version, _ = register_version(CONFIG, FOUND, PROMOTED, tmp_path, run_id, cards={})
    again = register_version(CONFIG, replace(FOUND, champion_version=version), PROMOTED, tmp_path, run_id, cards={})
    assert again == (version, "champion"), "a stage that was started again made a second version"
    _, other = another_lora(run_id, adapter, tmp_path / "other", 1.0)

    found = fetch_champion(CONFIG, other, tmp_path / "b")
    assert found.version == version and not found.absent and found.adapter is not None
    name = "pytorch_lora_weights.safetensors"
    assert (found.adapter / name).read_bytes() == (adapter / name).read_bytes()
    same = fetch_champion(CONFIG, adapter, tmp_path / "c")
    assert same.version == version and same.adapter is None and "is this very LoRA" in same.absent
    elsewhere = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"revision": "abc"})})
    absent = fetch_champion(elsewhere, other, tmp_path / "d")
    assert absent.adapter is None and "version 1 of marble, is for demo://sd3, so it is not compared with" in absent.absent


def test_the_card_says_what_it_is_made_of_and_shows_pictures(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rows = []
    for i, source in enumerate(("general",) * 3 + ("ocr",)):
        pictures = {role: f"{role}-{i:03d}.png" for role in ("base", "trained")}
        for name in pictures.values():
            (images / name).write_bytes(name.encode())
        rows.append(json.dumps({"prompt": f"a | b <{i}>", "source": source, "pictures": pictures}))
    (images / "scores.jsonl").write_text("\n".join(rows))
    found = replace(FOUND, settings={**FOUND.settings, "revision": "b940f670"})
    write_card(tmp_path / "card", CONFIG, found, PROMOTED, images, "marble", "the-run", {})
    said = (tmp_path / "card" / "README.md").read_text()
    assert "for demo://sd3 at revision b940f670, fine-tuned by MARBLE" in said
    for word in ("the-run", CONFIG.digest, "demo://prompts/ocr", "| demo://sd3 | model | this project's", "| geneval | 96 |"):
        assert word in said
    shown = {path.name for path in (tmp_path / "card" / "examples").iterdir()}
    assert shown == {f"{role}-{i:03d}.png" for role in ("base", "trained") for i in (0, 1, 3)}
    assert all(f"(examples/{name})" in said for name in shown) and r"a \| b \<0\>" in said


def test_a_refusal_is_recorded_in_the_run_and_makes_no_version(run_id: str) -> None:
    import mlflow

    record_refusal(FOUND, REFUSED, run_id)
    tags = mlflow.MlflowClient().get_run(run_id).data.tags
    assert tags["marble.decision"] == "refused: worse" and tags["marble.reasons"] == "clipscore is worse than the base."
    assert mlflow.MlflowClient().search_registered_models() == []


def test_a_run_without_a_lora_and_an_mlflow_that_refuses_are_one_sentence(run_id: str, tmp_path: Path) -> None:
    with pytest.raises(MarbleError, match="logged no LoRA"):
        register_version(CONFIG, FOUND, PROMOTED, tmp_path, run_id, cards={})
    with pytest.raises(MarbleError, match=r"holds no pytorch_lora_weights\.safetensors"):
        log_adapter(tmp_path, "base", run_id, step=0)
    with pytest.raises(MarbleError, match=r"MLflow at sqlite:.* refused: .*; check MLFLOW_TRACKING_URI"):
        record_refusal(FOUND, REFUSED, "0" * 32)


def test_a_strength_is_in_the_weights_that_become_a_version_and_its_card_and_tags_say_it(
    run_id: str, adapter: Path, tmp_path: Path
) -> None:
    import mlflow
    from safetensors.torch import load_file

    from marble_core.training.promotion import log_at_strength

    run, directory = another_lora(run_id, adapter, tmp_path / "whole", 0.1)
    whole_uri = mlflow.MlflowClient().get_run(run).data.tags[MODEL_URI_TAG]
    log_at_strength(CONFIG, directory, 0.5, tmp_path, run)
    assert mlflow.MlflowClient().get_run(run).data.tags[MODEL_URI_TAG] == whole_uri, "no strength was to be chosen"
    chosen = load_config("demo", overrides=["registry.diversity_loss=0.2"])
    log_at_strength(chosen, directory, 0.5, tmp_path, run)
    version, _ = register_version(chosen, replace(FOUND, strength=0.5), PROMOTED, tmp_path / "none", run, cards={})
    files = Path(mlflow.artifacts.download_artifacts(f"models:/marble/{version}", dst_path=str(tmp_path)))
    folded = load_file(files / "adapter_weights" / "pytorch_lora_weights.safetensors")
    whole = load_file(directory / "pytorch_lora_weights.safetensors")
    pairs = [(n, n.replace("lora_A", "lora_B")) for n in folded if "lora_A" in n]
    assert len(pairs) == len(whole) / 2
    for a, b in pairs:
        added = 0.5 * (6 / 2) * whole[b] @ whole[a]  # alpha is 6, the rank 2
        assert (folded[b] @ folded[a] - added).abs().max() < 1e-6 < added.abs().max()
    assert mlflow.MlflowClient().get_model_version("marble", version).tags["marble.strength"] == "0.5"
    assert "These weights have the factor 0.5 folded in" in (files / "README.md").read_text()
