"""What people are shown holds nothing that opens a door."""

import json
from pathlib import Path

import pytest

from marble_core.config.loading import load_config
from marble_core.config.redaction import json_without_secrets, settings_without_secrets
from marble_core.runtime import progress
from marble_core.runtime.environment import PROGRESS
from marble_core.tracking.model_card import write_card
from marble_core.tracking.tracker import Tracker, run_params
from marble_core.types import MarbleError
from report_builders import an_evaluation

SIGNED = "https://user:s3cr3t@files.example/p.txt?X-Amz-Signature=s3cr3t"


@pytest.mark.parametrize(
    "address",
    [
        "http://user:s3cr3t@mlflow.example:5000",
        "postgresql+psycopg2://mlflow:s3cr3t@db.example/mlflow",
        "https://user:s3cr3t@with@s3.example/bucket",
        "https://s3.example/key?X-Amz-Signature=s3cr3t&x=1",
    ],
)
def test_no_error_sentence_shows_a_login_or_a_signature_and_the_server_is_still_named(address: str) -> None:
    said = str(MarbleError(f"The server at {address}: check it, or {address!r}."))
    assert "s3cr3t" not in said and said.count(".example") == 2


@pytest.mark.parametrize(
    "address", ["hf://org/name@main/file.pt", "s3://bucket/a@b/c", "generate://ocr?share=.5", "models:/m@champion"]
)
def test_what_only_looks_like_a_login_stays(address: str) -> None:
    assert str(MarbleError(f"See {address}.")) == f"See {address}."


def test_an_mlflow_with_a_password_in_its_address_is_named_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:s3cr3t@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MarbleError, match=r"127\.0\.0\.1:9") as error:
        Tracker.start("marble", "a", "a", "train")
    assert "s3cr3t" not in str(error.value)


def test_an_option_that_is_called_like_a_secret_is_hidden_in_parameters_and_files_and_the_name_of_a_variable_is_not() -> None:
    tree = {"rewards": [{"name": "mine", "api_key": "s3cr3t", "key_variable": "MY_API_KEY", "url": SIGNED, "tokens": 77}]}
    shown = settings_without_secrets(tree)["rewards"][0]
    assert "s3cr3t" not in str(shown) and (shown["key_variable"], shown["tokens"]) == ("MY_API_KEY", 77)
    assert "s3cr3t" not in json_without_secrets(json.dumps(tree))
    flat = settings_without_secrets({"rewards.mine.options.access_token": "s3cr3t", "rewards.mine.weight": "1"})
    assert flat == {"rewards.mine.options.access_token": "(hidden)", "rewards.mine.weight": "1"}


def test_card_parameters_and_progress_of_a_run_on_signed_addresses_show_no_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from marble_core.evaluation.gate import decide

    config = load_config("demo", overrides=[f"data.train.general={SIGNED}", f"data.evaluation.general={SIGNED}"])
    evaluation = an_evaluation(a=(0.1, 0.05, 0.15), b=(0.1, 0.05, 0.15))
    write_card(tmp_path, config, evaluation, decide(evaluation, config.registry), tmp_path, "marble", "run", {})
    monkeypatch.setenv(PROGRESS, str(tmp_path / "progress.jsonl"))
    progress.emit("prepare", note=f"3 prompts from {SIGNED}")
    written = [path.read_text() for path in (tmp_path / "README.md", tmp_path / "progress.jsonl")]
    assert all("files.example/p.txt" in text and "s3cr3t" not in text for text in written)
    assert "s3cr3t" not in str(run_params(config))
