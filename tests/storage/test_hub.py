"""Where models and checkpoints come from: the package, paths, a hub (a stub on loopback), S3 (a real one) and the web."""

import pytest
from huggingface_hub import constants

from commands import sentence_of
from marble_core.config.loading import load_config
from marble_core.storage import uri as assets
from marble_core.storage.artifacts import Part
from marble_core.storage.catalogue import Base, base_of
from marble_core.storage.uri import portable, resolve
from marble_core.training.data_check import checked_data
from marble_core.types import MarbleError
from paths import names_under, write_files
from stub_hub import COMMIT

pytestmark = pytest.mark.usefixtures("cache")

PIPELINE = (
    "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "text_encoder/model.safetensors",
    "text_encoder_2/model.safetensors", "tokenizer_3/spiece.model", "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json", "vae/diffusion_pytorch_model.safetensors",
)  # fmt: skip

NOT_OF_A_PIPELINE = (
    "sd3.5_medium.safetensors", "text_encoders/t5xxl_fp16.safetensors", "text_encoder/model.fp16.safetensors", "README.md",
    "transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "onnx/model.onnx",
)  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- the hub
def test_a_repository_is_fetched_once_with_the_files_of_its_part_only(hub):
    place = resolve("org/clip")
    assert names_under(place) == ["config.json", "model.safetensors", "tokenizer.json"]
    hub.asked.clear()
    assert resolve("org/clip") == resolve("hf://org/clip") == resolve("hf://org/clip@main") == place
    assert hub.asked == []


def test_the_rest_of_a_repository_is_fetched_when_it_is_needed(hub):
    assert names_under(resolve("org/clip", Part.PROCESSOR)) == ["config.json", "tokenizer.json"]
    hub.asked.clear()
    assert "model.safetensors" in names_under(resolve("org/clip", Part.MODEL))
    assert "GET /org/clip/resolve/" + hub.revisions["main"] + "/model.safetensors" in hub.asked
    assert not any("tokenizer.json" in path for path in hub.asked)


def test_a_repository_without_safetensors_gives_its_other_weights(hub):
    write_files(hub.root / "org/old", "config.json", "pytorch_model.bin", "tf_model.h5", "vocab.json", "merges.txt")
    assert names_under(resolve("org/old")) == ["config.json", "merges.txt", "pytorch_model.bin", "vocab.json"]


def test_of_a_pipeline_its_parts_come_and_no_weights_twice(hub):
    write_files(hub.root / "org/sd", *PIPELINE, *NOT_OF_A_PIPELINE)
    assert names_under(resolve("org/sd", Part.PIPELINE)) == sorted(PIPELINE)


def test_one_file_of_a_repository_and_a_revision_have_their_names(hub):
    write_files(hub.root / "org/hps", "HPS_v2.1.pt", "deep/other.pt", "HPS_v2.pt")
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
    sentence_of(caught)
    with pytest.raises(MarbleError, match="Run 'marble fetch' where there is a network"):
        resolve("hf://org/other/file.pt")


def test_what_another_program_put_into_the_cache_serves_offline(cache, monkeypatch):
    snapshot = cache / "hub/models--org--clip/snapshots" / ("c" * 40)
    write_files(snapshot, "config.json", "model.safetensors")
    write_files(snapshot.parents[1] / "refs", "main")
    (snapshot.parents[1] / "refs/main").write_text("c" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("org/clip") == snapshot
    assert resolve("hf://org/clip/config.json") == snapshot / "config.json"
    with pytest.raises(MarbleError, match=r"and HF_HUB_OFFLINE is set\. Run 'marble fetch'"):
        resolve("hf://org/clip/weights.pt")


def test_a_download_that_was_broken_off_is_completed_and_offline_is_refused(hub, monkeypatch):
    place = resolve("org/clip")
    (place / "model.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MarbleError, match="has not all of 'org/clip', and HF_HUB_OFFLINE is set"):
        resolve("org/clip")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert "model.safetensors" in names_under(resolve("org/clip"))


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
        assert not token or token not in sentence_of(caught)
    assert (f"Bearer {token}" in hub.tokens) == bool(token)


@pytest.mark.parametrize("token", ["", "hf_secretsecretsecret"])
def test_a_base_model_that_is_not_for_this_account_is_refused_before_a_gpu_is_asked_for(hub, monkeypatch, token, tmp_path):
    """By what check and prepare call, without a download; the listing of a gated repository is public, so it is not enough."""
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    write_files(hub.root / "org/sd3", *PIPELINE)
    (hub.root / "org/sd3/model_index.json").write_text("{}")
    write_files(hub.root / "org/pickled", "model_index.json", "vae/diffusion_pytorch_model.bin")
    config = load_config("demo", overrides=["model.path=org/sd3"])
    assert not checked_data(config).warnings and base_of(config.model) == Base("org/sd3", None, "unknown")
    hub.gated.add("org/sd3")
    with pytest.raises(MarbleError, match=r"'org/sd3' is gated: accept its licence on .*/org/sd3, and set HF_TOKEN") as caught:
        checked_data(config)
    assert not token or token not in sentence_of(caught)
    for path, sentence in (
        ("org/none", "no such repository"),
        ("org/clip", "holds no pipeline"),
        ("org/pickled", "org/pickled has the weights of vae pickled only"),
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
    write_files(hub.root / "org/data", "train.parquet")
    with pytest.raises(MarbleError, match=sentence) as caught:
        resolve(uri)
    sentence_of(caught)


def test_a_cache_that_cannot_be_written_is_one_sentence(hub, cache):
    cache.write_text("a file where the directory should be")
    with pytest.raises(MarbleError, match="cannot be brought from the hub into") as caught:
        resolve("org/clip")
    sentence_of(caught)
    with pytest.raises(MarbleError, match=r"cannot be written: .*; see HF_HOME"):
        resolve(f"{hub.url}/files/org/clip/config.json")


def test_elsewhere_a_repository_keeps_its_name(hub):
    assert portable("org/clip") == "org/clip" and hub.asked == []
    assert portable("demo://sd3") == str(assets.WEIGHTS / "sd3")
