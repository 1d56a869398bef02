"""What a URI names: the package, a path, or nothing that we know."""

import pickle

import pytest
from huggingface_hub import constants

from commands import sentence_of
from marble_core.storage.artifacts import Part
from marble_core.storage.uri import check_access, resolve
from marble_core.types import MarbleError
from paths import write_files

pytestmark = pytest.mark.usefixtures("cache")


# ------------------------------------------------------------------------------------------------- the package and paths
def test_the_package_and_local_paths_are_found_without_asking_anyone(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (resolve("demo://rewards/clip") / "config.json").is_file()
    write_files(tmp_path, "heads/head.pth")
    assert resolve(str(tmp_path / "heads")) == tmp_path / "heads"
    monkeypatch.chdir(tmp_path)
    assert resolve("heads/head.pth").read_text() == "xheads/head.pth"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/heads") == tmp_path / "heads"


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("demo://sd4", "There is no 'demo://sd4'; the demo has .*demo://sd3"),
        ("/no/such/file.pt", "'/no/such/file.pt' does not exist"),
        ("clip", "'clip' does not exist"),
        ("a b/c", "'a b/c' does not exist"),
        ("hf://onlyone", "not of the form hf://organisation/name@revision"),
        ("hf://org/na me", "not of the form hf://organisation/name@revision"),
        ("org/na--me", "no name of a repository on the hub"),
        ("s3://bucket", "not of the form s3://bucket/path"),
        ("s3:///key", "not of the form s3://bucket/path"),
        ("ftp://host/file.pt", "'ftp://host/file.pt' does not exist"),
        ("", "'' does not exist"),
    ],
)
def test_a_name_that_is_none_is_one_sentence(uri, sentence, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MarbleError, match=sentence) as caught:
        resolve(uri)
    sentence_of(caught)


class Poison:
    def __init__(self, mark) -> None:
        self.mark = mark

    def __reduce__(self):
        return self.mark.touch, ()


def test_weights_of_a_base_model_that_are_pickled_only_are_refused_and_not_read(tmp_path):
    write_files(tmp_path / "sd3", "model_index.json", "vae/diffusion_pytorch_model.safetensors", "vae/old.bin")
    check_access(str(tmp_path / "sd3"), Part.PIPELINE)
    write_files(tmp_path / "sd3", "transformer/config.json")
    (tmp_path / "sd3/transformer/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Poison(tmp_path / "ran")))
    with pytest.raises(MarbleError, match="has the weights of transformer pickled only"):
        check_access(str(tmp_path / "sd3"), Part.PIPELINE)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["pipeline.py", "transformer/mine.py"])
def test_a_base_model_with_code_of_its_own_is_refused(tmp_path, file):
    write_files(tmp_path / "sd3", "model_index.json", "transformer/diffusion_pytorch_model.safetensors", file)
    with pytest.raises(MarbleError, match="brings code of its own"):
        check_access(str(tmp_path / "sd3"), Part.PIPELINE)


BRINGS = {
    "code": (("transformer/mine.py",), "brings code of its own"),
    "code beside": (("pipeline.py",), "brings code of its own"),
    "pickled": (("vae/diffusion_pytorch_model.bin",), "has the weights of vae pickled only"),
}


@pytest.mark.parametrize("brings", BRINGS)
@pytest.mark.parametrize("where", ["s3", "cache"])
def test_a_base_model_in_s3_or_in_the_hubs_cache_is_refused_before_it_is_brought(
    tmp_path, cache, hub, bucket, monkeypatch, where, brings
):
    files, sentence = BRINGS[brings]
    good = ("model_index.json", "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors")
    if where == "s3":
        write_files(tmp_path / "sd3", *good)
        bucket.upload_dir(tmp_path / "sd3", "models/sd3")
        uri, place = bucket.uri("models/sd3"), tmp_path / "more"
    else:
        write_files(hub.root / "org/sd3", *good)
        uri, place = "org/sd3", resolve("org/sd3", Part.PIPELINE)
        hub.server.shutdown()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_access(uri, Part.PIPELINE)
    write_files(place, *files)
    if where == "s3":
        bucket.upload_dir(place, "models/sd3")
    with pytest.raises(MarbleError, match=sentence):
        check_access(uri, Part.PIPELINE)
    assert where == "cache" or not (cache / "assets").exists(), "nothing was brought"


def test_a_base_model_in_an_s3_that_is_away_is_told_and_one_that_is_not_there_is_refused(bucket, monkeypatch):
    with pytest.raises(MarbleError, match=r"There is nothing at s3://.*/models/none"):
        check_access(bucket.uri("models/none"), Part.PIPELINE)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "can be had is not known: The S3 bucket" in check_access(bucket.uri("models/none"), Part.PIPELINE)
