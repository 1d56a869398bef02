"""Evaluation as published: what our row is made of, the command on the demo model, and a LoRA from a real MLflow."""

import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from marble_core.cli.evaluate import evaluate, labelled
from marble_core.config.loading import load_config
from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.evaluation.paper_table import COLUMNS, ROWS, as_published, differences, read_test_sets, row_of
from marble_core.models.adapter_file import read_unplaced, write_lora
from marble_core.models.policy import Policy
from marble_core.tracking.registry import fetch_adapter
from marble_core.types import MarbleError, Prompt, RewardTable

DRAWBENCH = ["A red colored car.", "A black colored car.", "Three cats and one dog sitting on the grass.", "A red colored car."]
OCR = ['A storefront with a sign that says "OPEN"', 'A poster with the words "Spring Sale" in bold', 'A cup printed with "TEA"']
GENEVAL = [
    {"tag": "single_object", "include": [{"class": "star", "count": 1}], "prompt": "a photo of a star"},
    {"tag": "counting", "include": [{"class": "square", "count": 2}], "exclude": [{"class": "square", "count": 3}], "prompt": "a photo of two squares"},
    {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}], "prompt": "a photo of a red circle"},
]  # fmt: skip
CLIP = 'rewards=[{name: clipscore, options: {checkpoint: "demo://rewards/clip"}}, {name: geneval, options: {detector: "marble_core.demo.shapes:ShapesDetector"}}]'


@pytest.fixture
def test_sets(tmp_path: Path) -> list[str]:
    """In the formats of the published files: text, text, JSON lines."""
    (tmp_path / "drawbench.txt").write_text("\n".join(DRAWBENCH) + "\n")
    (tmp_path / "ocr.txt").write_text("\n".join(OCR) + "\n")
    (tmp_path / "geneval.jsonl").write_text("\n".join(map(json.dumps, GENEVAL)) + "\n")
    names = {"general": "drawbench.txt", "ocr": "ocr.txt", "geneval": "geneval.jsonl"}
    return [f"data.evaluation.{source}={tmp_path / name}" for source, name in names.items()]


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A LoRA of the demo model that changes images."""
    import torch

    config = load_config("demo", overrides=["lora.rank=2", "lora.alpha=8"])
    policy = Policy.load(config)
    policy.add_trainable(config)
    draw = torch.Generator().manual_seed(0)
    weights = {n: 0.3 * torch.randn(p.shape, generator=draw) for n, p in policy.parameters_of("default").items()}
    directory = tmp_path_factory.mktemp("lora")
    policy.save_adapter(directory, weights)
    yield directory


def test_a_column_is_the_mean_over_its_own_test_set_in_the_tables_unit() -> None:
    prompts = [Prompt("a", "general"), Prompt("b", "general"), Prompt("c", "ocr", {"text": "c"}), Prompt("d", "geneval", {"include": [{}]}), Prompt("a", "general")]  # fmt: skip
    nan = np.nan
    R_NK = np.array([[0.80, nan, nan], [0.90, nan, nan], [0.10, 1.0, nan], [0.20, nan, 0.25], [0.82, nan, nan]])
    row = row_of(RewardTable(("pickscore", "ocr", "geneval"), R_NK), prompts)
    assert row["pickscore"].mean == pytest.approx(26 * (0.80 + 0.90 + 0.82) / 3) and row["pickscore"].n == 3
    # Two texts, of which one was drawn twice: 26 x .81 and 26 x .90.
    assert row["pickscore"].half_width == pytest.approx(1.96 * 26 * 0.09 / np.sqrt(2) / np.sqrt(2))
    assert (row["ocr"].mean, row["ocr"].half_width) == (1.0, None) and row["geneval"].mean == 0.25
    assert row.keys() == {"pickscore", "ocr", "geneval"}


def test_a_published_row_has_a_number_for_each_of_the_eight_rewards() -> None:
    assert len({column.reward for column in COLUMNS}) == 8 and {len(row) for row in ROWS.values()} == {8}


def test_with_the_published_files_model_and_rewards_there_is_nothing_to_note(tmp_path: Path) -> None:
    unified = (
        "evaluation.rewards=[{name: aesthetic}, {name: imagereward}, {name: unifiedreward, options: {url: 'http://host/v1'}}]"
    )
    files = {"general": tmp_path / "d.txt", "ocr": tmp_path / "o.txt", "geneval": tmp_path / "g.jsonl"}
    files["general"].write_text("\n".join(f"prompt {i % 200}" for i in range(1000)))
    files["ocr"].write_text("\n".join(f'a sign that says "{i}"' for i in range(1018)))
    files["geneval"].write_text("\n".join(json.dumps(GENEVAL[0] | {"prompt": f"a photo {i % 553}"}) for i in range(2212)))
    sets = [f"data.evaluation.{source}={file}" for source, file in files.items()]
    config = as_published(load_config("sd35-medium-8gpu", overrides=[*sets, unified]))
    prompts = read_test_sets(config)
    assert len(prompts) == 1000 + 1018 + 2212 and differences(config, prompts) == []
    few = read_test_sets(config, limit=100)
    assert len(few) == 300 and len(differences(config, few)) == 3
    assert (config.evaluation.solver, config.evaluation.steps) == ("euler", 40)


def test_the_command_prints_base_and_lora_beside_the_published_rows_and_their_settings_travel_with_them(
    tmp_path: Path, test_sets: list[str], lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    evaluate(published=True, adapter=[str(lora)], preset="demo", config=None, set_=[*test_sets, CLIP], limit=3, out=out)
    said = capsys.readouterr().out
    assert re.search(r"^MARBLE +0\.94 +0\.96 +22\.83 +0\.286 ", said, re.MULTILINE)
    assert "ours, base" in said and "Note: The published rows are of stabilityai/stable-diffusion-3.5-medium" in said
    assert "Not measured: ocr, pickscore, hpsv2, aesthetic, imagereward, unifiedreward" in said
    record = json.loads((out / "published.json").read_text())
    base, ours = record["ours"].values()
    assert base["clipscore"]["n"] == 3 and base["geneval"]["n"] == 3 and base.keys() == {"clipscore", "geneval"}
    assert base["clipscore"]["mean"] != ours["clipscore"]["mean"]
    settings = record["settings"]
    assert (settings["solver"], settings["steps"], settings["guidance_scale"]) == ("euler", 40, 1.0)
    assert list(settings["adapters_sha256"].values()) == [sha256((lora / ADAPTER_FILE).read_bytes()).hexdigest()]
    assert list(record["adapters"].values()) == [str(lora)]
    assert settings["prompts"] == {"general": 3, "ocr": 3, "geneval": 3}
    (label,) = record["adapters"]
    assert len(list((out / "images").glob(f"{label}-*.png"))) == 9


def test_loras_that_others_publish_stand_in_one_table_with_ours_from_the_same_prompts_and_noise(
    tmp_path: Path, test_sets: list[str], lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """flow_grpo and DiffusionNFT publish what peft's save_pretrained writes: here ours in that form, as one that agrees to the bit,
    and one of another rank and strength."""
    import torch
    from peft import LoraConfig, get_peft_model

    peft = write_lora(read_unplaced(lora), tmp_path / "nft", "peft").parent
    config = load_config("demo", overrides=["model.precision=fp32"])
    torch.manual_seed(1)
    public = LoraConfig(r=3, lora_alpha=12, init_lora_weights=False, target_modules=["attn.to_q", "attn.to_out.0"])
    get_peft_model(Policy.load(config).transformer, public).save_pretrained(tmp_path / "grpo")
    own = [*test_sets, CLIP, "model.precision=fp32"]
    given = [f"ours={lora}", f"NFT={peft}", f"FlowGRPO={tmp_path / 'grpo'}"]
    evaluate(published=True, adapter=given, preset="demo", config=None, set_=own, limit=2, out=tmp_path / "out")
    said, record = capsys.readouterr().out, json.loads((tmp_path / "out" / "published.json").read_text())
    starts = [line.split("  ")[0].strip() for line in said.splitlines()]
    assert [s for s in starts if s.startswith("ours, ")][:4] == ["ours, base", "ours, ours", "ours, NFT", "ours, FlowGRPO"]
    assert "MARBLE" in starts, "in one table with the published rows"
    rows = record["ours"]
    assert rows["ours, ours"] == rows["ours, NFT"] != rows["ours, FlowGRPO"] != rows["ours, base"]
    images = {role: [p.read_bytes() for p in sorted((tmp_path / "out" / "images").glob(f"{role}-*.png"))] for role in
              ("base", "ours", "NFT", "FlowGRPO")}  # fmt: skip
    assert images["ours"] == images["NFT"] and len({tuple(own) for own in images.values()}) == 3 and len(images["base"]) == 6
    scores = [json.loads(line) for line in (tmp_path / "out" / "images" / "scores.jsonl").read_text().splitlines()]
    assert len({row["noise_seed"] for row in scores}) == 6 and all(
        {"base", *record["adapters"]} <= row.keys() for row in scores
    )


@pytest.mark.parametrize("given", [["a=x", "a=y"], ["base=x"], ["a="], ["same/dir", "same/dir"]])
def test_each_lora_has_a_label_of_its_own(given: list[str]) -> None:
    with pytest.raises(MarbleError, match="give each LoRA a label of its own"):
        labelled(given)


def test_an_address_that_holds_an_equals_sign_is_no_label(tmp_path: Path) -> None:
    (tmp_path / "lr=1").mkdir()
    where = ["https://host/lora.safetensors?key=1", str(tmp_path / "lr=1"), "mine=s3://bucket/a=b"]
    assert list(labelled(where).values()) == [*where[:2], "s3://bucket/a=b"] and "mine" in labelled(where)


def test_the_base_alone_is_sampled_once_and_without_published_the_configurations_own_settings_hold(
    tmp_path: Path, test_sets: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    own = [*test_sets, CLIP, "evaluation.steps=2", "evaluation.solver=dpm2"]
    evaluate(published=False, adapter=None, preset="demo", config=None, set_=own, limit=1, out=tmp_path / "out")
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "published.json").read_text())
    assert list(record["ours"]) == ["ours, base"] and record["published"] == {} and "MARBLE" not in said
    assert (record["settings"]["solver"], record["settings"]["steps"]) == ("dpm2", 2)


@pytest.mark.services
def test_a_registered_lora_is_had_by_its_alias_and_one_that_is_not_there_is_one_sentence(
    services: dict[str, str], lora: Path, tmp_path: Path
) -> None:
    import mlflow

    from marble_core.tracking.registry import log_adapter

    mlflow.set_tracking_uri(services["MLFLOW_TRACKING_URI"])
    client = mlflow.MlflowClient()
    run = client.create_run(client.create_experiment("published"))
    uri = log_adapter(lora, "demo://sd3", run.info.run_id, 1)
    client.create_registered_model("published")
    version = client.create_model_version("published", uri, run.info.run_id, model_id=uri.removeprefix("models:/"))
    client.set_registered_model_alias("published", "champion", version.version)
    file = fetch_adapter("models:/published@champion", str(tmp_path))
    assert file.read_bytes() == (lora / file.name).read_bytes()
    with pytest.raises(MarbleError, match=r"models:/published@nobody cannot be had from MLflow \(.*\); marble ui"):
        fetch_adapter("models:/published@nobody", str(tmp_path))
