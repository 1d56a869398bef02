"""Files from S3 (a real one) and from the web: fetched once, whole or not at all."""

import os
import subprocess
import sys

import pytest

from commands import sentence_of
from marble_core.storage.downloads import S3Asset, WebFile
from marble_core.storage.s3 import S3
from marble_core.storage.uri import resolve
from marble_core.types import MarbleError
from paths import names_under, write_files

pytestmark = pytest.mark.usefixtures("cache")


# -------------------------------------------------------------------------------------------------------------------- S3
@pytest.mark.services
def test_an_object_and_a_prefix_come_from_s3_once_and_again_when_they_change(bucket: S3, tmp_path):
    write_files(tmp_path / "up", "clip/config.json", "clip/deep/model.safetensors", "clip-2/other", "head.pth")
    bucket.upload_dir(tmp_path / "up", "models")
    head, clip = resolve(bucket.uri("models/head.pth")), resolve(bucket.uri("models/clip"))
    assert head.name == "head.pth" and head.read_text() == "xhead.pth"
    assert names_under(clip) == ["config.json", "deep/model.safetensors"]
    inode = (clip / "config.json").stat().st_ino
    assert resolve(bucket.uri("models/clip")) == resolve(bucket.uri("models/clip/")) == clip
    assert (clip / "config.json").stat().st_ino == inode  # was not fetched again
    write_files(tmp_path / "up", "clip/config.json", content="changed")
    bucket.upload_dir(tmp_path / "up", "models")
    newer = resolve(bucket.uri("models/clip"))
    assert (newer / "config.json").read_text() == "changedclip/config.json"
    assert (clip / "config.json").read_text() == "xclip/config.json"  # whoever reads the old one is not disturbed
    assert resolve(bucket.uri("models/head.pth")) == head


@pytest.mark.services
def test_a_copy_that_lost_bytes_is_fetched_again_and_without_s3_the_copy_serves(bucket: S3, tmp_path, monkeypatch, caplog):
    write_files(tmp_path, "head.pth")
    bucket.upload_file(tmp_path / "head.pth", "head.pth")
    uri = bucket.uri("head.pth")
    resolve(uri).write_text("x")
    assert resolve(uri).read_text() == "xhead.pth"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert resolve(uri).read_text() == "xhead.pth" and "copy in the model cache is used instead" in caplog.text
    resolve(uri).write_text("x")
    with pytest.raises(MarbleError, match="no S3 credentials") as caught:
        resolve(uri)
    sentence_of(caught)


@pytest.mark.services
def test_nothing_half_fetched_is_ever_seen(bucket: S3, tmp_path, monkeypatch, cache):
    write_files(tmp_path, "a/one", "a/two")
    bucket.upload_dir(tmp_path / "a", "a")
    download = S3.download_file

    def break_off(self, key, local, progress=None):
        if key.endswith("two"):
            local.write_text("ha")
            raise KeyboardInterrupt
        download(self, key, local, progress)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(S3, "download_file", break_off)
        resolve(bucket.uri("a"))
    assert S3Asset(bucket.uri("a")).cached() is None
    assert [p.name for p in (cache / "assets").rglob("*") if p.is_file()] == ["lock"]

    def shorten(self, key, local, progress=None):
        download(self, key, local, progress)
        local.write_text("short"[:3])

    with monkeypatch.context() as patched, pytest.raises(MarbleError, match="has changed while it was read"):
        patched.setattr(S3, "download_file", shorten)
        resolve(bucket.uri("a"))
    assert names_under(resolve(bucket.uri("a"))) == ["one", "two"]


@pytest.mark.services
def test_of_several_processes_one_fetches(bucket: S3, tmp_path, cache):
    write_files(tmp_path, "head.pth", content="y" * 300_000)
    bucket.upload_file(tmp_path / "head.pth", "head.pth")
    script = "import sys; from marble_core.storage.uri import resolve; print(resolve(sys.argv[1]))"
    environment = {**os.environ, "HF_HOME": str(cache)}
    command = [sys.executable, "-c", script, bucket.uri("head.pth")]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "abc"
    ]
    said = [process.communicate(timeout=600) for process in running]
    assert len({out for out, _ in said}) == 1 and all(process.returncode == 0 for process in running), said
    assert sum("Fetching" in err for _, err in said) == 1


@pytest.mark.services
def test_what_s3_does_not_have_and_what_would_leave_the_cache_is_one_sentence(bucket: S3, monkeypatch):
    for uri, sentence in (
        (bucket.uri("nothing"), f"There is nothing at s3://{bucket.bucket}/nothing on "),
        ("s3://no-such-bucket-here/x", "no S3 bucket 'no-such-bucket-here'"),
    ):
        with pytest.raises(MarbleError, match=sentence) as caught:
            resolve(uri)
        sentence_of(caught)
    monkeypatch.setattr(S3, "objects", lambda self, path: {"models/../../../escaped": (1, "e")})
    with pytest.raises(MarbleError, match="outside of the model cache"):
        resolve(bucket.uri("models"))


# --------------------------------------------------------------------------------------------------------------- the web
def test_a_published_file_is_fetched_once(hub, cache):
    write_files(hub.root / "web", "sac+logos.pth")
    uri = f"{hub.url}/files/web/sac%2Blogos.pth"
    place = resolve(uri)
    assert place.name == "sac+logos.pth" and place.read_text() == "xsac+logos.pth"
    hub.asked.clear()
    assert resolve(uri) == place and hub.asked == []
    place.write_text("cut")
    assert resolve(uri).read_text() == "xsac+logos.pth"
    assert WebFile(uri).size() == len("xsac+logos.pth")


def test_a_file_that_breaks_off_is_refused_and_leaves_nothing(hub, cache, monkeypatch):
    write_files(hub.root / "web", "head.pth")
    send = hub._send
    longer = lambda request, status, body, headers=None: send(
        request, status, body, {**(headers or {}), "Content-Length": "99"}
    )
    monkeypatch.setattr(hub, "_send", longer)
    with pytest.raises(MarbleError, match=r"head\.pth broke off") as caught:
        resolve(f"{hub.url}/files/web/head.pth")
    sentence_of(caught)
    assert [p.name for p in (cache / "assets").rglob("*") if p.is_file()] == ["lock"]


def test_a_published_file_that_cannot_be_had_is_one_sentence_without_the_secrets_of_its_address(hub):
    for uri, sentence in (
        (f"{hub.url}/files/none.pth?signature=s3cr3t", "the server answers 404"),
        ("http://user:s3cr3t@127.0.0.1:9/head.pth?signature=s3cr3t", "cannot be reached"),
    ):
        with pytest.raises(MarbleError, match=sentence) as caught:
            resolve(uri)
        assert "s3cr3t" not in sentence_of(caught)
