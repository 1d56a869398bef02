"""One bucket on a real S3 server, and what is said when it is not there."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from marble_core.storage.s3 import S3
from marble_core.types import MarbleError, Outage
from peculiar_s3 import Answer, Request, peculiar


def test_a_directory_comes_back_as_it_was(bucket: S3, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "a.bin").write_bytes(bytes(range(256)) * 40_000)  # more than one part
    (source / "deep" / "b.txt").write_text("β")
    assert bucket.upload_dir(source, "runs/x") == f"s3://{bucket.bucket}/runs/x/"
    assert list(bucket.keys("runs/x")) == ["runs/x/a.bin", "runs/x/deep/b.txt"]
    assert bucket.prefixes("runs") == ["x"] and bucket.prefixes("runs/x/") == ["deep"]
    bucket.download_dir("runs/x/", tmp_path / "copy")
    assert (tmp_path / "copy" / "a.bin").read_bytes() == (source / "a.bin").read_bytes()
    assert (tmp_path / "copy" / "deep" / "b.txt").read_text() == "β"


def test_a_prefix_is_a_directory_and_not_a_beginning(bucket: S3) -> None:
    bucket.put_json("runs/x/1", {})
    bucket.put_json("runs/xy/1", {})
    assert list(bucket.keys("runs/x")) == ["runs/x/1"]


def test_of_many_who_write_on_the_same_condition_one_wins(bucket: S3) -> None:
    etag = None
    for attempt in ("new", "replaced"):
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda i: bucket.swap("one", f"{attempt} {i}".encode(), etag), range(8)))  # noqa: B023
        (winner,) = [i for i, new in enumerate(made) if new]
        etag = made[winner]
        assert bucket.get("one") == (f"{attempt} {winner}".encode(), etag)
    bucket.delete("one")
    assert bucket.swap("one", b"too late", etag) is None and bucket.get("one") is None


@pytest.mark.parametrize("times", [1, 3, 4])
def test_a_body_that_breaks_off_is_asked_for_three_times_more(
    bucket: S3, services: dict[str, str], monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    body, asked = b"0123456789" * 1000, []

    def breaks_off(request: Request) -> Request | Answer:
        asked.append(request.method)
        return Answer(200, {"etag": '"e"'}, body, cut=5000) if len(asked) <= times else request

    bucket.put("whole", body)
    with peculiar(services, breaks_off) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        s3 = S3(bucket.bucket)
        if times < 4:
            assert s3.get("whole")[0] == body  # type: ignore[index]
        else:
            with pytest.raises(Outage, match=r"cannot be read \(.*(more expected|IncompleteRead)"):
                s3.get("whole")
    assert asked == ["GET"] * min(4, times + 1)


def test_json_that_is_not_there_is_none(bucket: S3) -> None:
    assert bucket.get_json("nothing") is None
    assert not bucket.exists("nothing")
    bucket.put_json("something", [1])
    assert bucket.exists("something")
    bucket.delete("something")
    assert not bucket.exists("something")


def test_an_object_cannot_leave_the_directory_it_is_downloaded_to(
    bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "keys", lambda _: iter(["runs/x/../../escaped"]))  # which other servers allow
    with pytest.raises(MarbleError, match="outside"):
        bucket.download_dir("runs/x", tmp_path / "in" / "side")
    assert list(tmp_path.iterdir()) == []


def one_sentence(error: pytest.ExceptionInfo[MarbleError]) -> str:
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_a_bucket_that_is_not_there_is_one_sentence(services: dict[str, str]) -> None:
    with pytest.raises(MarbleError) as error:
        S3("not-there").require_bucket()
    said = one_sentence(error)
    assert "no S3 bucket 'not-there'" in said and services["AWS_ENDPOINT_URL"] in said and "storage.bucket" in said


@pytest.mark.parametrize(("variable", "value"), [("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "nobody")])
def test_wrong_keys_are_one_sentence_that_does_not_repeat_them(
    services: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    (tmp_path / "file").write_text("x")
    for attempt in (
        lambda: S3("marble").require_bucket(),
        lambda: S3("marble").upload_dir(tmp_path, "x"),
        lambda: S3("marble").download_dir("x", tmp_path),
        lambda: S3("marble").put_json("x", {}),
    ):
        with pytest.raises(MarbleError, match="refuses the keys") as error:
            attempt()
        said = one_sentence(error)
        assert services["AWS_SECRET_ACCESS_KEY"] not in said and services["AWS_ACCESS_KEY_ID"] not in said


def test_no_keys_no_server_and_no_url_are_one_sentence_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(MarbleError, match="no S3 credentials") as error:
        S3("marble").require_bucket()
    one_sentence(error)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(MarbleError, match="cannot be reached") as error:
        S3("marble").require_bucket()
    one_sentence(error)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9")
    with pytest.raises(MarbleError, match="is not a URL") as error:
        S3("marble")
    one_sentence(error)
