"""Stores x stages: what a store cannot do is refused by prepare's questions, in a sentence, and what they let pass no stage dies of."""

import socket
import uuid
from pathlib import Path
from typing import Any

import pytest

from builders import registered_by_hand
from checkpoint_builders import content, found, write_run
from marble_core import stages
from marble_core.checkpoints.run_checkpoints import RunCheckpoints
from marble_core.checkpoints.start_from import locate
from marble_core.config.loading import load_config
from marble_core.preflight.answers import as_markdown, lines, require
from marble_core.preflight.servers import ask_servers
from marble_core.preflight.store import ask_s3, checkpoints
from marble_core.storage.s3 import S3
from marble_core.storage.s3_errors import Refused
from marble_core.types import MarbleError
from peculiar_s3 import (
    Peculiarity,
    as_it_is,
    clock_skew,
    conditions_ignored,
    conditions_unknown,
    expired_token,
    if_match_ignored,
    if_match_refused,
    missing_is_refused,
    no_checksums,
    no_delete,
    no_parts,
    no_path_style,
    other_parts,
    peculiar,
    prefix_alone,
    slow_down,
    small_parts,
    stale_list,
    wrong_region,
)

# What prepare says: the sentence of its refusal, or "" where all four stages must work.
REFUSED: dict[str, tuple[Peculiarity, str]] = {
    "plain": (as_it_is, ""),
    "no delete": (no_delete, ""),
    "slow down": (slow_down(), ""),
    "conditions ignored": (
        conditions_ignored,
        r"ignores If-None-Match on writes, by which one process .* see docs/storage\.md",
    ),
    "If-Match ignored": (if_match_ignored, r"ignores If-Match on writes, by which one process .* see docs/storage\.md"),
    "If-Match refused": (if_match_refused, r"refuses a write whose If-Match names the present version, by which one process"),
    "501 on conditions": (conditions_unknown, r"does not know conditional writes \(If-None-Match, If-Match\).*NotImplemented"),
    "checksums refused": (no_checksums, r"refuses boto3's checksums .*crc32.*AWS_REQUEST_CHECKSUM_CALCULATION=when_required"),
    "no uploads in parts": (no_parts, r"does not know a request by which s3://.*/preflight is written .*CreateMultipartUpload"),
    "small bodies": (small_parts, r"takes no body of 8 MB, .*413.*proxy-body-size"),
    "parts changed": (other_parts, r"gives back another file than was uploaded as s3://|checksum|ChecksumMismatch|BadDigest"),
    "path style refused": (no_path_style, r"SecondLevelDomainForbidden.*set MARBLE_S3_ADDRESSING=virtual"),
    "clock skew": (clock_skew, r"clocks of this machine and of http.*RequestTimeTooSkewed.*NTP"),
    "expired token": (expired_token, r"have expired \(ExpiredToken\).*AWS_SESSION_TOKEN"),
    "wrong region": (wrong_region, r"in another region .*AWS_DEFAULT_REGION"),
    "stale list": (stale_list, r"does not list s3://.* 2 s after it was written"),
}


def train(s3: S3, local: Path) -> None:
    write_run(local, s3, "one", "two", "three", keep_last=1)
    assert found(local / "fresh", s3) == ("three", [])


def evaluate(s3: S3) -> None:
    RunCheckpoints(s3, "run-1").record_gain(3, 0.5)
    assert RunCheckpoints(s3, "run-1").best_step() == 3


def register(s3: S3) -> None:
    run = RunCheckpoints(s3, "run-1")
    name = run.latest()
    assert name
    remote, same = locate(run.uri(name))
    assert same == name and remote.prefix == run.prefix


def all_stages(s3: S3, local: Path) -> None:
    require(ask_s3(s3, "run-1"))
    train(s3, local)
    evaluate(s3)
    register(s3)


@pytest.mark.parametrize("store", REFUSED)
def test_each_stage_works_on_the_store_or_prepare_refuses_it(
    bucket: S3, services: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: str
) -> None:
    peculiarity, sentence = REFUSED[store]
    with peculiar(services, peculiarity) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        s3 = S3(bucket.bucket)
        if not sentence:
            all_stages(s3, tmp_path / "local")
            return
        with pytest.raises(MarbleError, match=sentence) as error:
            require(ask_s3(s3, "run-1"))
        assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_keys_for_a_prefix_alone_are_enough_and_say_which_permission_is_missing_elsewhere(
    bucket: S3, services: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with peculiar(services, prefix_alone) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        s3 = S3(f"{bucket.bucket}/team/marble")
        assert s3.uri("runs/a") == f"s3://{bucket.bucket}/team/marble/runs/a"
        all_stages(s3, tmp_path / "local")
        with pytest.raises(MarbleError, match=r"runs/ may not be reached \(AccessDenied\); they need s3:ListBucket there"):
            require(ask_s3(S3(bucket.bucket), "run-1"))
    assert all(key.startswith("team/marble/runs/run-1/") for key in bucket.keys(""))


def test_a_refusal_of_what_is_not_there_yet_names_the_right_to_list(
    bucket: S3, services: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with peculiar(services, missing_is_refused) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        answers = ask_servers(load_config("demo"), S3(bucket.bucket), "run-1")
    assert (answers[-1].asked, answers[-1].state) == ("S3: the run's checkpoints", "no")
    with pytest.raises(
        MarbleError, match=r"latest may not be read .*s3:GetObject \(and s3:ListBucket, without which what is not"
    ):
        require(answers)


def test_a_runs_checkpoints_never_were_or_are_or_were_and_are_gone(bucket: S3, tmp_path: Path) -> None:
    assert checkpoints(bucket, "run-1") is None
    first, last = write_run(tmp_path, bucket, "one", "two")
    assert checkpoints(bucket, "run-1") == f"it goes on from {last}"
    RunCheckpoints(bucket, "run-1").delete(last)
    assert checkpoints(bucket, "run-1") == (
        f"{bucket.uri(f'runs/run-1/checkpoints/{last}')} was the newest and is gone: the run goes on from {first}"
    )
    RunCheckpoints(bucket, "run-1").delete(first)
    assert str(checkpoints(bucket, "run-1")).endswith("is gone: the run begins again from its first step")


def test_no_delete_and_versions_are_said_in_the_table_and_the_scratch_object_stays(
    bucket: S3, services: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with peculiar(services, no_delete, versioned=True) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        answers = {each.asked: each for each in ask_s3(S3(bucket.bucket), "run-1")}
        assert {each.state for each in answers.values()} == {"yes", "note"}
        assert "all checkpoints of a run stay" in answers["S3: delete it"].answer
        assert "lifecycle" in answers["S3: put an object"].answer
    assert list(bucket.keys("")) == ["runs/run-1/preflight"]
    table = as_markdown(list(answers.values()))
    assert table.count("\n") == 1 + len(answers) == len(lines(list(answers.values()))) + 1


@pytest.fixture
def s3_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of s3.example and of all buckets there are this machine's."""
    resolve = socket.getaddrinfo

    def here(host: Any, *args: Any, **kwargs: Any) -> Any:
        return resolve("127.0.0.1" if str(host).endswith("s3.example") else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", here)


@pytest.mark.parametrize("by", ["file", "variable"])
def test_the_users_own_aws_file_or_one_variable_says_how_buckets_are_addressed(
    bucket: S3, services: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3_example: None, by: str
) -> None:
    style = "virtual" if by == "file" else "path"  # the variable wins
    (tmp_path / "config").write_text(f"[default]\ns3 =\n  addressing_style = {style}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    if by == "variable":
        monkeypatch.setenv("MARBLE_S3_ADDRESSING", "virtual")
    with peculiar(services, no_path_style) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url.replace("127.0.0.1", "s3.example"))
        all_stages(S3(bucket.bucket), tmp_path / "local")


def test_a_way_of_addressing_that_there_is_not_is_one_sentence(
    services: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARBLE_S3_ADDRESSING", "dns")
    with pytest.raises(Refused, match=r"^MARBLE_S3_ADDRESSING is 'dns': give path, virtual or auto, or leave it out\.$"):
        S3("marble")


def test_a_store_without_checksums_works_with_the_variables_that_the_sentence_names(
    bucket: S3, services: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        monkeypatch.setenv(name, "when_required")
    with peculiar(services, no_checksums) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        all_stages(S3(bucket.bucket), tmp_path / "local")


def test_a_store_that_forgets_conditions_in_mid_run_ends_it_at_once_and_is_not_called_away(
    bucket: S3, services: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from marble_core.checkpoints import CheckpointStore

    with peculiar(services, conditions_unknown) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        late = S3(bucket.bucket)
    store = CheckpointStore(tmp_path / "a", bucket, f"run-{uuid.uuid4().hex[:6]}")
    with store.owned(beat=3600.0), peculiar(services, conditions_unknown) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        late = S3(bucket.bucket)
        store.remote.s3 = store._lease._s3 = late  # type: ignore[union-attr]
        store.save(1, content("one"))
        with pytest.raises(Refused, match="does not know conditional writes"):
            store.flush()


# Stores that prepare lets pass: how they are peculiar, the variables that they need, and the prefix that the keys are for.
PASSED: dict[str, tuple[Peculiarity, dict[str, str], str]] = {
    "plain": (as_it_is, {}, ""),
    "no delete": (no_delete, {}, ""),
    "slow down": (slow_down(), {}, ""),
    "a prefix": (prefix_alone, {}, "/team/marble"),
    "versioned": (as_it_is, {}, ""),
    "checksums refused": (
        no_checksums,
        dict.fromkeys(("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"), "when_required"),
        "",
    ),
    "path style refused": (no_path_style, {"MARBLE_S3_ADDRESSING": "virtual"}, ""),
    "IRSA": (as_it_is, {"AWS_WEB_IDENTITY_TOKEN_FILE": "/token"}, ""),
}
TINY = [
    "train.steps=1", "train.processes=1", "train.checkpoint_every=1", "train.samples_every=0", "rollout.prompts=3", "rollout.steps=2",
    "rollout.images_per_prompt=2", "loss.timesteps=1", "data.train_size=30", "data.evaluation_size=4", "evaluation.steps=2",
    "evaluation.resamples=200", "evaluation.diversity_prompts=0", "lora.rank=64", "rewards=[{name: compressibility}]",
]  # fmt: skip


@pytest.mark.deep  # a run from prepare to a version, for each store: a quarter of a minute
@pytest.mark.parametrize("store", PASSED)
def test_prepare_train_evaluate_and_register_themselves_work_on_each_store_that_prepare_lets_pass(
    bucket: S3, services: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3_example: None, store: str
) -> None:
    peculiarity, variables, prefix = PASSED[store]
    prepared, adapter, evaluation = (tmp_path / name for name in ("prepared", "adapter", "evaluation"))
    with peculiar(services, peculiarity, versioned=store == "versioned") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url.replace("127.0.0.1", "s3.example"))
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        run_id, where = f"store-{uuid.uuid4().hex[:6]}", f"storage.bucket={bucket.bucket}{prefix}"
        overrides = [*TINY, where, f"storage.local={tmp_path / 'local'}", f"registry.model={run_id}"]
        stages.prepare("demo", overrides, run_id, prepared, tmp_path / "data.html")
        stages.train(prepared, adapter)
        stages.evaluate(prepared, adapter, evaluation, tmp_path / "report.html")
        assert registered_by_hand(prepared, adapter, evaluation) == "1"
    sizes = {key: size for key, (size, _) in bucket.objects(f"{prefix.lstrip('/')}/runs/{run_id}".lstrip("/")).items()}
    assert max(sizes.values()) > 8 << 20, "a checkpoint that was sent in parts"
    assert any(key.endswith("evaluations/step-000001.json") for key in sizes)
