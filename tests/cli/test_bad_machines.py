"""Bad checkpoints, adapters, images, stores, disks and clocks: one sentence each, and nothing half written."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from builders import SmallModel
from commands import one_sentence, run_marble
from marble_core import stages
from marble_core.checkpoints import CheckpointStore
from marble_core.checkpoints.manifest import MANIFEST, name_of, seal
from marble_core.checkpoints.start_from import downloaded
from marble_core.config import stage_files
from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.models.policy import Policy
from marble_core.rewards.images import as_images
from marble_core.runtime import progress
from marble_core.storage.s3 import S3
from marble_core.types import MarbleError

SMALL = ["data.train_size=300", "data.evaluation_size=9"]
LAYER = "transformer.transformer_blocks.0.attn.to_q"
LORA = {f"{LAYER}.lora_A.weight": torch.zeros(4, 32), f"{LAYER}.lora_B.weight": torch.zeros(32, 4)}
NAME = name_of(1, "0123abcd")


def refused(attempt: Callable[[], object], *parts: str) -> None:
    with pytest.raises(MarbleError) as error:
        attempt()
    one_sentence(str(error.value), *parts)


def write_adapter(path: Path, kind: str) -> None:
    """A LoRA of builders.SmallModel, with something wrong."""
    a, b = LORA
    match kind:
        case "rank":
            save_file({a: torch.zeros(8, 32), b: torch.zeros(32, 8)}, path)
        case "layers":
            save_file({name.replace("blocks.0", "blocks.77"): tensor for name, tensor in LORA.items()}, path)
        case "width":
            save_file({a: torch.zeros(4, 64), b: torch.zeros(64, 4)}, path)
        case "unet":
            save_file({name.replace("transformer.", "unet.", 1): tensor for name, tensor in LORA.items()}, path)
        case "pickle":
            path.write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in LORA.items()}))
        case "torch":
            torch.save(LORA, path)
        case "cut":
            save_file(LORA, path)
            path.write_bytes(path.read_bytes()[:-100])
        case "header":
            path.write_bytes((2**62).to_bytes(8, "little") + b"{")
        case "empty":
            path.write_bytes(b"")
        case "nothing":
            save_file({}, path)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", f"holds no {ADAPTER_FILE}"),
        ("rank", "rank 8, but lora.rank is 4"),
        ("layers", "another model's"),
        ("width", "another model's"),
        ("unet", "another model's"),
        *((kind, "damaged or no safetensors file") for kind in ("pickle", "torch", "cut", "header", "empty")),
        ("nothing", "no layers"),
    ],
)
def test_an_adapter_that_is_not_the_models_is_refused_before_a_library_reads_it(tmp_path: Path, kind: str, says: str) -> None:
    if kind != "missing":
        write_adapter(tmp_path / ADAPTER_FILE, kind)
    policy = Policy(SmallModel())
    refused(lambda: policy.load_adapter(tmp_path, rank=4), str(tmp_path), says)
    assert not hasattr(policy.transformer, "peft_config")


@pytest.mark.parametrize(
    ("pictures", "says"),
    [
        ([Image.new("L", (8, 8))], "mode 'L'"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))], "(8, 9)"),
        (np.full((1, 8, 8, 3), np.nan), "not in [0, 1]"),
        (np.zeros((1, 8, 8, 4), np.uint8), "(1, 8, 8, 4)"),
        (np.zeros((1, 8, 8, 3), np.int64), "int64"),
        ([], "at least one"),
    ],
)
def test_pictures_that_are_none_are_refused(pictures: object, says: str) -> None:
    refused(lambda: as_images(pictures), says)


def checkpoint(directory: Path, spoil: Callable[[Path], object]) -> Path:
    """A sealed checkpoint of the run ``other``, spoiled afterwards."""
    directory = directory / NAME
    directory.mkdir()
    save_file({"ema/x": torch.zeros(1000)}, directory / "state.safetensors")
    seal(directory, "other", NAME)
    spoil(directory)
    return directory


def names_a_path(directory: Path) -> None:
    """With hashes that fit: it was made so, not damaged."""
    from marble_core.checkpoints.manifest import _canonical

    manifest = json.loads((directory / MANIFEST).read_bytes())
    del manifest["sha256"]
    manifest["files"]["../../../escaped"] = manifest["files"]["state.safetensors"]
    (directory / MANIFEST).write_bytes(_canonical(manifest))


@pytest.mark.services
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda d: os.truncate(d / "state.safetensors", 100), "state.safetensors was changed"),
        (lambda d: (d / "state.safetensors").unlink(), "state.safetensors is not there"),
        (lambda d: (d / "state.safetensors").write_bytes(pickle.dumps([1])), "state.safetensors was changed"),
        (lambda d: (d / MANIFEST).write_bytes(b"{"), "manifest.json was changed"),
        (names_a_path, "'../../../escaped'"),
    ],
)
def test_a_spoiled_checkpoint_to_start_from_is_named_and_nothing_leaves_its_directory(
    bucket: S3, tmp_path: Path, spoil: Callable[[Path], object], says: str
) -> None:
    bucket.upload_dir(checkpoint(tmp_path, spoil), f"runs/other/checkpoints/{NAME}")
    address = f"s3://{bucket.bucket}/runs/other/checkpoints/{NAME}"

    def fetch() -> None:
        with downloaded(address):
            raise AssertionError("it is not whole")

    refused(fetch, address, says)
    assert not list(tmp_path.parent.rglob("escaped"))


def prepare(out: Path, *overrides: str) -> str:
    return stages.prepare("demo", [*SMALL, *overrides], "bad", out, out.with_suffix(".html"))


@pytest.mark.services
def test_a_store_that_cannot_be_used_is_one_sentence_and_prepare_leaves_nothing(
    services: dict[str, str], bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = f"storage.bucket={bucket.bucket}"
    out = tmp_path / "prepared"
    refused(lambda: prepare(out, "storage.bucket=not-there"), "not-there", "storage.bucket")
    refused(lambda: prepare(out, own, f"train.start_from=s3://{bucket.bucket}/nothing"), "train.start_from", "s3://BUCKET/runs")
    refused(lambda: prepare(out, own, f"train.start_from=s3://{bucket.bucket}/runs/none"), "train.start_from", "no complete")
    refused(lambda: prepare(out, own, f"data.train.ocr=s3://{bucket.bucket}/none.jsonl"), "none.jsonl")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    refused(lambda: prepare(out, own), "refuses the keys", "AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:1")
    refused(lambda: prepare(out, own), "AWS_ENDPOINT_URL", "not a URL")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(file_system: Callable[[str], Path]) -> Path:
    """A disk of 64 kB."""
    return file_system("64k")


@pytest.mark.services
def test_a_full_disk_is_one_sentence_and_prepare_leaves_nothing_half_written(bucket: S3, small_disk: Path) -> None:
    own = f"storage.bucket={bucket.bucket}"
    refused(
        lambda: prepare(small_disk / "prepared", own, "data.train_size=2000"),
        str(small_disk),
        "No space left",
        "free some space",
    )
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("write", [lambda d: (d / "x").write_bytes(bytes(200_000)), lambda d: save_file({"x": torch.zeros(50_000)}, d / "x")])  # fmt: skip
def test_a_full_disk_is_one_sentence_and_no_checkpoint(small_disk: Path, write: Callable[[Path], object]) -> None:
    store = CheckpointStore(small_disk / "checkpoints", None, "run")

    def train() -> None:
        with progress.stage("train"):
            store.save(1, write)

    refused(train, "No space left", "free some space")
    assert [path.name for path in store.local.iterdir() if path.name != ".lock"] == [] and store.newest() is None


@pytest.mark.services
def test_a_read_only_disk_and_a_file_in_the_way_are_one_sentence(bucket: S3, small_disk: Path, tmp_path: Path) -> None:
    own = f"storage.bucket={bucket.bucket}"
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused(lambda: prepare(small_disk / "prepared", own), str(small_disk / "prepared"), "Read-only file system")
    refused(lambda: CheckpointStore(small_disk / "checkpoints", None, "run"), "Read-only file system", "storage.local")
    (tmp_path / "file").write_text("the user's")
    refused(lambda: prepare(tmp_path / "file" / "prepared", own), str(tmp_path / "file"), "in the way")
    assert (tmp_path / "file").read_text() == "the user's"


def test_a_run_where_nothing_can_be_written_ends_with_exit_code_2(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / ".marble").write_text("a file")
    for place, said in ((small_disk, "Read-only file system"), (taken, "File exists")):
        monkeypatch.chdir(place)
        assert run_marble("run", "--run-id", "x", monkeypatch=monkeypatch) == 2
        one_sentence(capsys.readouterr().err, ".marble", said)


def test_a_run_asks_for_room_before_it_begins(
    file_system: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = file_system("400m")
    monkeypatch.chdir(disk)
    assert run_marble("run", "--run-id", "x", monkeypatch=monkeypatch) == 2
    one_sentence(capsys.readouterr().err, str(disk / ".marble"), "MB free", "500 MB are needed", "free some space")
    assert sorted(path.name for path in (disk / ".marble").iterdir()) == [".gitignore", "lock"], "no server was started"


def test_the_newest_checkpoint_is_that_of_the_last_step_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    store = CheckpointStore(tmp_path, None, "run")
    for step, jump in ((1, 0.0), (2, -1e9), (3, 1e9), (4, -2e9)):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        made = store.save(step, lambda directory: (directory / "x").write_bytes(b"x"))
        os.utime(made, (max(0.0, now + jump),) * 2)
    newest = CheckpointStore(tmp_path, None, "run").newest()
    assert newest is not None and newest.startswith("step-000004")
    first = stage_files.new_run_id()
    monkeypatch.setattr(time, "time", lambda: now)
    assert stage_files.new_run_id() != first


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("config.json", None, "No such file"),
        ("config.json", "{", "config.json"),
        ("config.json", b"\xff\xfe", "config.json"),
        ("run.json", None, "run.json"),
        ("run.json", "[]", "run.json"),
        ("run.json", '{"run_id": "../x"}', "'../x'"),
    ],
)
def test_a_prepared_directory_that_was_spoiled_is_named(tmp_path: Path, file: str, text: str | bytes | None, says: str) -> None:
    from marble_core.config.loading import load_config

    (tmp_path / "config.json").write_text(load_config("demo").to_json())
    (tmp_path / "run.json").write_text('{"run_id": "x"}')
    assert stage_files.read_prepared(tmp_path)[1] == "x"
    if text is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(text.encode() if isinstance(text, str) else text)
    refused(lambda: stage_files.read_prepared(tmp_path), says)


def test_a_register_stage_without_its_evaluation_is_one_sentence(tmp_path: Path) -> None:
    refused(lambda: stages.register(*[tmp_path] * 4), "config.json", "No such file")


def test_what_is_told_of_a_reward_beforehand_is_what_its_scorer_says() -> None:
    from marble_core.config.schema import RewardConfig
    from marble_core.rewards.cards import cards_of
    from marble_core.rewards.geneval.rules import GenEval
    from marble_core.rewards.ocr import Ocr
    from marble_core.types import Prompt

    wish = ({"class": "dog", "count": 1},)
    prompts = [
        Prompt("a dog", "geneval", {"include": wish}),
        Prompt('a "B"', "general"),
        Prompt('a "B"', "ocr", {"text": "B"}),
        Prompt("a dog", "general"),
    ]
    for options in ({}, {"published": True}, {"any_quote": True}, {"published": True, "any_quote": False}):
        card = cards_of([RewardConfig(name="ocr", options=options)])["ocr"]
        said = [card.applies(prompt, options) for prompt in prompts]
        assert said == [Ocr(reader=lambda _: [], **options).applies(prompt) for prompt in prompts]
    said = [cards_of([RewardConfig(name="geneval")])["geneval"].applies(prompt, {}) for prompt in prompts]
    assert said == [GenEval.applies(None, prompt) for prompt in prompts]  # type: ignore[arg-type]
