"""Where models and checkpoints come from: the package, paths, a hub (a stub on loopback), S3 (a real one) and the web."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from marble_core.cli.fetch import fetch
from marble_core.config.imports import import_class
from marble_core.config.loading import load_config
from marble_core.config.schema import RewardConfig
from marble_core.rewards.clipscore import ClipScore
from marble_core.rewards.registry import SCORERS
from marble_core.stages import checked_data
from marble_core.storage import uri as assets
from marble_core.storage.artifacts import Part
from marble_core.storage.catalogue import (
    _OPTIONS,
    CLIP_H_PROCESSOR,
    CLIP_L,
    MASK2FORMER,
    PICKSCORE,
    Base,
    assets_of,
    base_of,
    needs,
)
from marble_core.storage.downloads import S3Asset, WebFile
from marble_core.storage.s3 import S3
from marble_core.storage.uri import portable, resolve
from marble_core.types import MarbleError
from stub_hub import COMMIT, StubHub, serving
from tiny_rewards import PROMPTS, noise, save_clip

PIPELINE = (
    "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "text_encoder/model.safetensors",
    "text_encoder_2/model.safetensors", "tokenizer_3/spiece.model", "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json", "vae/diffusion_pytorch_model.safetensors",
)  # fmt: skip
NOT_OF_A_PIPELINE = (
    "sd3.5_medium.safetensors", "text_encoders/t5xxl_fp16.safetensors", "text_encoder/model.fp16.safetensors", "README.md",
    "transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "onnx/model.onnx",
)  # fmt: skip


def write(root: Path, *names: str, content: str = "x") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + name)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The hub's settings, as its environment variables would make them."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "home" / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path / "home"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    stub = StubHub(tmp_path / "served")
    write(
        stub.root / "org/clip", "config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "flax_model.msgpack"
    )
    monkeypatch.setattr(constants, "ENDPOINT", stub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", stub.url + "/{repo_id}/resolve/{revision}/{filename}")
    with serving(stub.server):
        yield stub


def files(place: Path) -> list[str]:
    return sorted(file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file())


def one_sentence(caught: pytest.ExceptionInfo[MarbleError]) -> str:
    text = str(caught.value)
    assert "\n" not in text and text.endswith((".", "checkpoint"))
    return text


# ------------------------------------------------------------------------------------------------- the package and paths
def test_the_package_and_local_paths_are_found_without_asking_anyone(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (resolve("demo://rewards/clip") / "config.json").is_file()
    write(tmp_path, "heads/head.pth")
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
    one_sentence(caught)


# --------------------------------------------------------------------------------------------------------------- the hub
def test_a_repository_is_fetched_once_with_the_files_of_its_part_only(hub):
    place = resolve("org/clip")
    assert files(place) == ["config.json", "model.safetensors", "tokenizer.json"]
    hub.asked.clear()
    assert resolve("org/clip") == resolve("hf://org/clip") == resolve("hf://org/clip@main") == place
    assert hub.asked == []


def test_the_rest_of_a_repository_is_fetched_when_it_is_needed(hub):
    assert files(resolve("org/clip", Part.PROCESSOR)) == ["config.json", "tokenizer.json"]
    hub.asked.clear()
    assert "model.safetensors" in files(resolve("org/clip", Part.MODEL))
    assert "GET /org/clip/resolve/" + hub.revisions["main"] + "/model.safetensors" in hub.asked
    assert not any("tokenizer.json" in path for path in hub.asked)


def test_a_repository_without_safetensors_gives_its_other_weights(hub):
    write(hub.root / "org/old", "config.json", "pytorch_model.bin", "tf_model.h5", "vocab.json", "merges.txt")
    assert files(resolve("org/old")) == ["config.json", "merges.txt", "pytorch_model.bin", "vocab.json"]


def test_of_a_pipeline_its_parts_come_and_no_weights_twice(hub):
    write(hub.root / "org/sd", *PIPELINE, *NOT_OF_A_PIPELINE)
    assert files(resolve("org/sd", Part.PIPELINE)) == sorted(PIPELINE)


def test_one_file_of_a_repository_and_a_revision_have_their_names(hub):
    write(hub.root / "org/hps", "HPS_v2.1.pt", "deep/other.pt", "HPS_v2.pt")
    assert resolve("hf://org/hps/HPS_v2.1.pt").read_text() == "xHPS_v2.1.pt"
    place = resolve("hf://org/hps@v1/deep/other.pt")
    assert place.read_text() == "xdeep/other.pt" and hub.revisions["v1"] in str(place)
    hub.asked.clear()
    assert resolve("hf://org/hps/HPS_v2.1.pt").is_file() and resolve("hf://org/hps@v1/deep/other.pt") == place
    assert hub.revisions["v1"] in str(resolve("org/clip", revision="v1")) and hub.asked[0].endswith("/revision/v1")


def test_what_was_fetched_serves_when_the_hub_is_gone(hub, monkeypatch):
    place = resolve("org/clip")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert resolve("org/clip") == place
    with pytest.raises(MarbleError, match=r"has not all of 'org/other', and http://127.0.0.1:9 cannot be reached") as caught:
        resolve("org/other")
    one_sentence(caught)
    with pytest.raises(MarbleError, match="run 'marble fetch' where there is a network"):
        resolve("hf://org/other/file.pt")


def test_what_another_program_put_into_the_cache_serves_offline(cache, monkeypatch):
    snapshot = cache / "hub/models--org--clip/snapshots" / ("c" * 40)
    write(snapshot, "config.json", "model.safetensors")
    write(snapshot.parents[1] / "refs", "main")
    (snapshot.parents[1] / "refs/main").write_text("c" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("org/clip") == snapshot
    assert resolve("hf://org/clip/config.json") == snapshot / "config.json"
    with pytest.raises(MarbleError, match="and HF_HUB_OFFLINE is set: run 'marble fetch'"):
        resolve("hf://org/clip/weights.pt")


def test_a_download_that_was_broken_off_is_completed_and_offline_is_refused(hub, monkeypatch):
    place = resolve("org/clip")
    (place / "model.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MarbleError, match="has not all of 'org/clip', and HF_HUB_OFFLINE is set"):
        resolve("org/clip")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert "model.safetensors" in files(resolve("org/clip"))


@pytest.mark.parametrize("token", ["", "hf_secretsecretsecret"])
def test_a_gated_model_says_what_to_do_and_not_the_token(hub, monkeypatch, token):
    hub.gated.add("org/clip")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    for uri in ("org/clip", "hf://org/clip/config.json"):
        with pytest.raises(
            MarbleError, match=r"'org/clip' is gated: accept its licence on .*/org/clip, and set HF_TOKEN"
        ) as caught:
            resolve(uri)
        assert not token or token not in one_sentence(caught)
    assert (f"Bearer {token}" in hub.tokens) == bool(token)


@pytest.mark.parametrize("token", ["", "hf_secretsecretsecret"])
def test_a_base_model_that_is_not_for_this_account_is_refused_before_a_gpu_is_asked_for(hub, monkeypatch, token, tmp_path):
    """By what check and prepare call, without a download; the listing of a gated repository is public, so it is not enough."""
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    write(hub.root / "org/sd3", *PIPELINE)
    (hub.root / "org/sd3/model_index.json").write_text("{}")
    config = load_config("demo", overrides=["model.path=org/sd3"])
    assert not checked_data(config).warnings and base_of(config.model) == Base("org/sd3", None, "unknown")
    hub.gated.add("org/sd3")
    with pytest.raises(MarbleError, match=r"'org/sd3' is gated: accept its licence on .*/org/sd3, and set HF_TOKEN") as caught:
        checked_data(config)
    assert not token or token not in one_sentence(caught)
    for path, sentence in (
        ("org/none", "no such repository"),
        ("org/clip", "holds no pipeline"),
        (str(tmp_path), "model_index"),
    ):
        with pytest.raises(MarbleError, match=sentence):
            checked_data(load_config("demo", overrides=[f"model.path={path}"]))
    assert not [asked for asked in hub.asked if asked.startswith("GET /org")]
    hub.gated.clear()
    resolve("org/sd3", Part.PIPELINE)
    hub.gated.add("org/sd3")
    assert not checked_data(config).warnings, "what is in the cache is no longer asked for"
    assert base_of(config.model) == Base("org/sd3", COMMIT, "unknown")


def test_without_a_network_the_check_says_that_it_does_not_know(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    model = ["model.path=stabilityai/stable-diffusion-3.5-medium", "model.revision=v1"]
    config = load_config("demo", overrides=[*model, "hardware.memory_gib=100"])
    (warning,) = checked_data(config).warnings
    assert "stable-diffusion-3.5-medium" in warning and "127.0.0.1:9" in warning
    assert base_of(config.model) == Base(config.model.path, "v1", "Stability AI Community (gated)")
    assert base_of(load_config("demo").model).licence == "this project's"


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("org/nothing", "no directory 'org/nothing' here, and no such repository on the hub for you"),
        ("hf://org/clip@v9", "'org/clip' of the hub has no revision 'v9'"),
        ("hf://org/clip/weights.pt", "'org/clip' of the hub has no file 'weights.pt', but config.json, flax_model.msgpack"),
        ("org/data", "'org/data' of the hub holds no model"),
    ],
)
def test_what_the_hub_does_not_have_is_one_sentence(hub, uri, sentence):
    write(hub.root / "org/data", "train.parquet")
    with pytest.raises(MarbleError, match=sentence) as caught:
        resolve(uri)
    one_sentence(caught)


def test_a_cache_that_cannot_be_written_is_one_sentence(hub, cache):
    cache.write_text("a file where the directory should be")
    with pytest.raises(MarbleError, match="cannot be brought from the hub into") as caught:
        resolve("org/clip")
    one_sentence(caught)
    with pytest.raises(MarbleError, match=r"cannot be written: .*; see HF_HOME"):
        resolve(f"{hub.url}/files/org/clip/config.json")


def test_elsewhere_a_repository_keeps_its_name(hub):
    assert portable("org/clip") == "org/clip" and hub.asked == []
    assert portable("demo://sd3") == str(assets.WEIGHTS / "sd3")


# -------------------------------------------------------------------------------------------------------------------- S3
@pytest.mark.services
def test_an_object_and_a_prefix_come_from_s3_once_and_again_when_they_change(bucket: S3, tmp_path):
    write(tmp_path / "up", "clip/config.json", "clip/deep/model.safetensors", "clip-2/other", "head.pth")
    bucket.upload_dir(tmp_path / "up", "models")
    head, clip = resolve(bucket.uri("models/head.pth")), resolve(bucket.uri("models/clip"))
    assert head.name == "head.pth" and head.read_text() == "xhead.pth"
    assert files(clip) == ["config.json", "deep/model.safetensors"]
    inode = (clip / "config.json").stat().st_ino
    assert resolve(bucket.uri("models/clip")) == resolve(bucket.uri("models/clip/")) == clip
    assert (clip / "config.json").stat().st_ino == inode  # was not fetched again
    write(tmp_path / "up", "clip/config.json", content="changed")
    bucket.upload_dir(tmp_path / "up", "models")
    newer = resolve(bucket.uri("models/clip"))
    assert (newer / "config.json").read_text() == "changedclip/config.json"
    assert (clip / "config.json").read_text() == "xclip/config.json"  # whoever reads the old one is not disturbed
    assert resolve(bucket.uri("models/head.pth")) == head


@pytest.mark.services
def test_a_copy_that_lost_bytes_is_fetched_again_and_without_s3_the_copy_serves(bucket: S3, tmp_path, monkeypatch, caplog):
    write(tmp_path, "head.pth")
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
    one_sentence(caught)


@pytest.mark.services
def test_nothing_half_fetched_is_ever_seen(bucket: S3, tmp_path, monkeypatch, cache):
    write(tmp_path, "a/one", "a/two")
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
    assert files(resolve(bucket.uri("a"))) == ["one", "two"]


@pytest.mark.services
def test_of_several_processes_one_fetches(bucket: S3, tmp_path, cache):
    write(tmp_path, "head.pth", content="y" * 300_000)
    bucket.upload_file(tmp_path / "head.pth", "head.pth")
    script = "import sys; from marble_core.storage.uri import resolve; print(resolve(sys.argv[1]))"
    environment = {**os.environ, "HF_HOME": str(cache)}
    command = [sys.executable, "-c", script, bucket.uri("head.pth")]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "abc"
    ]
    said = [process.communicate(timeout=60) for process in running]
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
        one_sentence(caught)
    monkeypatch.setattr(S3, "objects", lambda self, path: {"models/../../../escaped": (1, "e")})
    with pytest.raises(MarbleError, match="outside of the model cache"):
        resolve(bucket.uri("models"))


# --------------------------------------------------------------------------------------------------------------- the web
def test_a_published_file_is_fetched_once(hub, cache):
    write(hub.root / "web", "sac+logos.pth")
    uri = f"{hub.url}/files/web/sac%2Blogos.pth"
    place = resolve(uri)
    assert place.name == "sac+logos.pth" and place.read_text() == "xsac+logos.pth"
    hub.asked.clear()
    assert resolve(uri) == place and hub.asked == []
    place.write_text("cut")
    assert resolve(uri).read_text() == "xsac+logos.pth"
    assert WebFile(uri).size() == len("xsac+logos.pth")


def test_a_file_that_breaks_off_is_refused_and_leaves_nothing(hub, cache, monkeypatch):
    write(hub.root / "web", "head.pth")
    send = hub._send
    longer = lambda request, status, body, headers=None: send(
        request, status, body, {**(headers or {}), "Content-Length": "99"}
    )
    monkeypatch.setattr(hub, "_send", longer)
    with pytest.raises(MarbleError, match=r"head\.pth broke off") as caught:
        resolve(f"{hub.url}/files/web/head.pth")
    one_sentence(caught)
    assert [p.name for p in (cache / "assets").rglob("*") if p.is_file()] == ["lock"]


def test_a_published_file_that_cannot_be_had_is_one_sentence_without_the_secrets_of_its_address(hub):
    for uri, sentence in (
        (f"{hub.url}/files/none.pth?signature=s3cr3t", "the server answers 404"),
        ("http://user:s3cr3t@127.0.0.1:9/head.pth?signature=s3cr3t", "cannot be reached"),
    ):
        with pytest.raises(MarbleError, match=sentence) as caught:
            resolve(uri)
        assert "s3cr3t" not in one_sentence(caught)


# --------------------------------------------------------------------------------------------- the catalogue, and fetch
def test_what_a_reward_needs_is_what_its_scorer_reads_by_default():
    for name, options in _OPTIONS.items():
        parameters = inspect.signature(import_class(SCORERS[name], name)).parameters
        assert {option: default for option, (default, _) in options.items()} == {
            option: parameters[option].default for option in options
        }
    assert needs(RewardConfig(name="pickscore")) == {PICKSCORE: Part.MODEL, CLIP_H_PROCESSOR: Part.PROCESSOR}
    assert needs(RewardConfig(name="pickscore", options={"checkpoint": "demo://x"})) == {"demo://x": Part.MODEL}
    assert needs(RewardConfig(name="geneval")) == {MASK2FORMER: Part.MODEL, CLIP_L: Part.MODEL}
    other = {"detector": "mine:Detector", "detector_options": {"weights": "s3://models/detector.pt"}}
    assert needs(RewardConfig(name="geneval", options=other)) == {"s3://models/detector.pt": Part.MODEL}
    endpoint = {"url": "http://host:17140/v1"}
    assert needs(RewardConfig(name="unifiedreward", options=endpoint)) == needs(RewardConfig(name="ocr")) == {}


def test_the_options_of_a_scorer_of_ones_own_are_fetched_where_they_are_uris():
    options = {"weights": ["hf://a/b", {"head": "https://c/d.pth"}], "checkpoint": "org/name", "url": "https://api/v1", "n": 3}
    reward = RewardConfig(name="clipscore", scorer="mine:Scorer", options=options)
    assert needs(reward) == {"hf://a/b": Part.MODEL, "https://c/d.pth": Part.MODEL}


def test_an_asset_of_several_rewards_is_listed_once_and_wholly():
    rewards = '[{name: hpsv2, options: {checkpoint: "demo://rewards/clip"}}, {name: clipscore}, {name: aesthetic}]'
    found = assets_of(load_config("demo", overrides=[f"rewards={rewards}", "model.revision=v1"]))
    assert (found[0].uri, found[0].part, found[0].users, found[0].revision) == ("demo://sd3", Part.PIPELINE, ("model",), "v1")
    (clip,) = (asset for asset in found if asset.uri == CLIP_L)
    assert clip.users == ("hpsv2", "clipscore", "aesthetic") and clip.part == Part.MODEL
    assert len({asset.uri for asset in found}) == len(found) == 4


def test_the_catalogue_and_the_assets_import_no_torch():
    script = "import sys, marble_core.storage.catalogue, marble_core.storage.downloads, marble_core.storage.hub; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"


def test_fetch_brings_what_is_missing_and_a_scorer_then_loads_without_a_network(hub, tmp_path, monkeypatch, capsys):
    save_clip(hub.root / "org/tiny")
    web = f"{hub.url}/files/org/tiny/model.safetensors"
    own = {"name": "mine", "scorer": "mine:Mine", "options": {"head": web}}
    setting = [f"rewards={json.dumps([{'name': 'clipscore', 'options': {'checkpoint': 'org/tiny'}}, own])}"]
    fetch("demo", set_=setting, dry_run=True)
    assert capsys.readouterr().out.count("to fetch") == 2 and not (tmp_path / "home").exists()
    fetch("demo", set_=setting)
    assert "works offline" in capsys.readouterr().out
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    fetch("demo", set_=setting)
    said = capsys.readouterr().out
    assert said.count("in the cache") == 2 and said.count("here  ") == 1 and "Fetched" not in said
    assert np.isfinite(ClipScore("org/tiny").score(noise(1, 32), PROMPTS[:1]))


def test_fetch_brings_the_others_where_one_is_refused(hub, tmp_path):
    hub.gated.add("org/clip")
    save_clip(hub.root / "org/tiny")
    rewards = [{"name": n, "options": {"checkpoint": f"org/{u}"}} for n, u in (("clipscore", "clip"), ("pickscore", "tiny"))]
    command = [sys.executable, "-m", "marble_core.cli", "fetch", "--set", f"rewards={json.dumps(rewards)}"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "HF_TOKEN": "t0k3n"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "Fetched" in done.stdout and "works offline" not in done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith("The model 'org/clip' is gated: accept its licence on")
    assert "Traceback" not in done.stderr and "t0k3n" not in done.stderr + done.stdout
