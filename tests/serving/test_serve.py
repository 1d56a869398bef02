"""The served champion: the images it answers with, the switch to a promoted version, the way back, and what is refused."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import save_file

from browser import chromium
from marble_core.config.loading import load_config
from marble_core.evaluation.gate import Decision
from marble_core.evaluation.results import Estimate, Evaluation, RewardResult
from marble_core.models.policy import Policy
from marble_core.serving.app import make_app
from marble_core.serving.follower import Follower
from marble_core.serving.served import Served
from marble_core.tracking.registry import BASE_TAG, log_adapter, register_version, roll_back
from marble_core.types import MarbleError

CONFIG = load_config("demo", overrides=["lora.rank=2", "lora.alpha=2", "evaluation.steps=4"])
DIFFERENCE = Estimate(0.2, 0.1, 0.3)
EVALUATION = Evaluation({"ocr": RewardResult(9, 0.5, 0.7, DIFFERENCE, base_std=0.4, win_rate=0.5)}, {}, DIFFERENCE)
URL = "/v1/images/generations"


@pytest.fixture
def served() -> Served:
    return Served(CONFIG)


@pytest.fixture
def promote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: Served) -> Iterator[Callable[[float], str]]:
    """Registers a LoRA whose every weight is ``value``, as the champion of a real MLflow on sqlite; gives its version."""
    import mlflow

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("marble", artifact_location=f"file://{tmp_path}/artifacts")
    policy = Policy(served.policy.model)
    layers = [n for n, m in served.policy.transformer.named_modules() if n.endswith(("attn.to_q", "attn.to_q.base_layer"))]
    names = [n.removesuffix(".base_layer") for n in layers]
    width = policy.transformer.config.num_attention_heads * policy.transformer.config.attention_head_dim

    def make(value: float) -> str:
        directory = tmp_path / str(value)
        directory.mkdir()
        weights = {
            f"transformer.{n}.lora_{x}.weight": torch.full(s, value)
            for n in names
            for x, s in (("A", (2, width)), ("B", (width, 2)))
        }
        save_file(weights, directory / "pytorch_lora_weights.safetensors")
        run = client.create_run(experiment).info.run_id
        log_adapter(directory, "/base", run, step=1)
        champion = served_champion(client)
        found = Evaluation(EVALUATION.rewards, {}, DIFFERENCE, champion_version=champion)
        return register_version(CONFIG, found, Decision(True, "promoted", ()), tmp_path, run, cards={})[0]

    yield make
    mlflow.set_tracking_uri(before)


def served_champion(client) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias("marble", "champion").version)
    except MlflowException:
        return None


def pixels(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(d["b64_json"])))) for d in answer.json()["data"]])


def ask(client: TestClient, **wish):
    return client.post(URL, json={"prompt": "two red circles", "seed": 5} | wish)


def test_a_request_is_answered_by_the_champion_then_by_the_rolled_back_one(promote, served) -> None:
    said: list[str] = []
    follower = Follower(served, 60, said.append)
    client = TestClient(make_app(follower))
    follower.look()
    assert ask(client).status_code == 404, "no champion yet"
    base = pixels(ask(client, model="base"))
    first = promote(0.05)
    follower.look()
    by_first = pixels(ask(client))
    second = promote(-0.09)
    assert client.get("/v1/models").json()["champion"] == first, "it is followed at a look, not at a request"
    follower.look()
    by_second = pixels(ask(client))
    assert client.get("/v1/models").json() | {"size": ""} == {
        "registered_model": "marble", "champion": second, "previous": first, "base": "demo://sd3", "size": "", "no_guidance": ""
    }  # fmt: skip
    assert len({a.tobytes() for a in (base, by_first, by_second)}) == 3
    assert (pixels(ask(client, model="previous")) == by_first).all()
    roll_back("marble")
    follower.look()
    assert (pixels(ask(client)) == by_first).all() and (pixels(ask(client, model=second)) == by_second).all()
    assert said == [
        f"Version {first} is served as the champion.",
        f"Version {second} is served as the champion.",
        f"Version {first} is served as the champion.",
    ]


def test_only_the_champion_and_the_one_before_it_stay_loaded(promote, served) -> None:
    follower = Follower(served, 60, lambda _: None)
    versions = []
    for value in (0.01, 0.02, 0.03):
        versions.append(promote(value))
        follower.look()
    client = TestClient(make_app(follower))
    gone = ask(client, model=versions[0])
    assert gone.status_code == 400 and f"Version {versions[0]} is not served" in gone.json()["detail"]
    assert set(served.policy.transformer.peft_config) == {f"version-{v}" for v in versions[1:]}


def test_seed_strength_and_guidance_change_the_image_as_they_say(promote, served) -> None:
    follower = Follower(served, 60, lambda _: None)
    promote(0.2)
    follower.look()
    client = TestClient(make_app(follower))
    base, full = pixels(ask(client, model="base")), pixels(ask(client))
    assert (pixels(ask(client)) == full).all() and (pixels(ask(client, seed=6)) != full).any()
    assert (pixels(ask(client, strength=0)) == base).all() and (pixels(ask(client, strength=0.5)) != full).any()
    assert (pixels(ask(client, guidance=3)) != full).any()
    two = pixels(ask(client, n=2))
    alone = np.concatenate([full, pixels(ask(client, seed=6))])
    assert np.abs(two.astype(int) - alone).max() <= 1, "an image does not depend on those beside it, but for rounding"
    without = client.post(URL, json={"prompt": "two red circles"})
    again = ask(client, seed=without.json()["data"][0]["seed"])
    assert (pixels(again) == pixels(without)).all(), "the seed that was drawn is told"


@pytest.mark.parametrize(
    ("wish", "code", "says"),
    [
        ({"n": 99}, 422, "less than or equal to 8"),
        ({"size": "1024x1024"}, 400, "size 1024x1024 is not served: this model draws 64x64"),
        ({"prompt": ""}, 422, "at least 1 character"),
        ({"strenght": 1}, 422, "Extra inputs"),
        ({"model": "77"}, 400, "Version 77 is not served"),
        ({"guidance": 0.5}, 422, "greater than or equal to 1"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_no_image(served, wish, code, says) -> None:
    answer = ask(TestClient(make_app(Follower(served, 60, lambda _: None))), **wish)
    assert answer.status_code == code and says in str(answer.json()["detail"])


def test_a_version_of_another_base_is_not_served_and_what_was_served_stays(promote, served) -> None:
    import mlflow

    said: list[str] = []
    follower = Follower(served, 60, said.append)
    first = promote(0.04)
    follower.look()
    other = promote(0.07)
    mlflow.MlflowClient().set_model_version_tag("marble", other, BASE_TAG, "/elsewhere")
    follower.look()
    follower.look()
    assert served.version == first and said[-1].startswith(
        f"Version {other} of marble is for /elsewhere, but demo://sd3 is served"
    )
    assert len(said) == 2, "the same trouble is said once"
    client = TestClient(make_app(follower))
    assert "is for /elsewhere" in client.get("/healthz").json()["trouble"] and ask(client).status_code == 200


def test_the_page_draws_base_and_champion_side_by_side_in_a_browser(promote, served, tmp_path: Path) -> None:
    version = promote(0.1)
    with Follower(served, 60, lambda _: None) as follower:
        server = uvicorn.Server(uvicorn.Config(make_app(follower), port=0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
            port = server.servers[0].sockets[0].getsockname()[1]
            with chromium(tmp_path / "profile") as browser:
                browser.open(
                    f"http://127.0.0.1:{port}/", wait=f"document.body.innerText.includes('version {version} is the champion')"
                )
                browser.evaluate("document.getElementById('prompt').value = 'a blue square'")
                browser.evaluate("document.getElementById('seed').value = '3'")
                drawn = """new Promise(done => {
                  new MutationObserver(() => document.querySelectorAll('#pair img').length == 2 &&
                    Promise.all([...document.images].map(i => i.decode())).then(() => done(
                      [...document.images].map(i => [i.naturalWidth, i.alt])))).observe(document.getElementById('pair'), {childList: true});
                  document.querySelector('button').click();
                })"""
                assert browser.evaluate(drawn) == [[64, "base, seed 3"], [64, f"version {version}, strength 1, seed 3"]]
                assert not browser.errors
                assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        finally:
            server.should_exit = True
            thread.join()


def test_a_port_that_is_taken_is_found_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from marble_core.serving import server

    with server._listening("127.0.0.1", 0) as taken, pytest.raises(MarbleError, match="give another --port"):
        server.run(CONFIG, "127.0.0.1", taken.getsockname()[1], 30, print)
