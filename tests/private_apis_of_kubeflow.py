"""Checks that test_private_apis.py's rows name: Kubeflow Pipelines, Kubeflow Trainer and Kubernetes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace as Bag
from typing import Any

import pytest


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path != "/there":
            return self.send_error(404)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"said": "yes"}')

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def server() -> Iterator[str]:
    """One that has /there alone."""
    with HTTPServer(("127.0.0.1", 0), Handler) as one:
        Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{one.server_port}"
        one.shutdown()


def kfp_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The constructor asks get_kfp_healthz where it knows no namespace; all its APIs have one ApiClient."""
    import kfp
    import kfp.client

    asked: list[str] = []

    class Client(kfp.Client):
        def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
            asked.append(self._existing_config.host)
            assert self._healthz_api.api_client is self._run_api.api_client and hasattr(
                self._healthz_api.api_client, "rest_client"
            )
            return Bag(multi_user=False)

    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    client = Client("http://127.0.0.1:9", existing_token="x")
    assert asked == ["http://127.0.0.1:9"] and not list(tmp_path.iterdir())
    client._context_setting["namespace"] = "team"
    assert client.get_user_namespace() == "team"
    assert client.pipelines.pipeline_service_create_pipeline.__self__.api_client is client._healthz_api.api_client
    delete = client.recurring_runs.recurring_run_service_delete_recurring_run
    assert delete.__self__.api_client is client._healthz_api.api_client and "propagation_policy" in (delete.__doc__ or "")
    (tmp_path / "context.json").write_text(json.dumps({"namespace": "kept"}))
    assert Client("http://127.0.0.1:9").get_user_namespace() == "kept" and len(asked) == 1
    assert kfp.client.KF_PIPELINES_SA_TOKEN_ENV == "KF_PIPELINES_SA_TOKEN_PATH"
    assert kfp.client.KF_PIPELINES_SA_TOKEN_PATH.startswith("/var/run/secrets/")
    (tmp_path / "token").write_text("renewed")
    config = Bag(api_key={})
    kfp.client.ServiceAccountTokenVolumeCredentials(str(tmp_path / "token")).refresh_api_key_hook(config)
    assert config.api_key["authorization"] == "renewed"


def kfp_requests() -> None:
    """All verbs go through request, which takes two limits; bodies are bytes, and a refusal's is decoded afterwards."""
    import urllib3
    from kfp_server_api import ApiClient, ApiException, Configuration
    from kfp_server_api.rest import RESTClientObject

    limits: list[Any] = []

    class Requests(RESTClientObject):
        def request(self, *arguments: Any, **named: Any) -> Any:
            limits.append(named["_request_timeout"])
            try:
                return super().request(*arguments, **{**named, "_request_timeout": (1.0, 2.0)})
            except ApiException as error:
                assert isinstance(error.body, bytes)
                error.body = b"ours"
                raise

    with server() as url:
        configuration = Configuration(host=url)
        configuration.retries = urllib3.Retry(0)
        (client := ApiClient(configuration)).rest_client = Requests(configuration)
        assert client.rest_client.pool_manager.connection_pool_kw["retries"] is configuration.retries
        assert client.rest_client.GET(f"{url}/there").data == b'{"said": "yes"}'
        with pytest.raises(ApiException) as refused:
            client.call_api("/none", "GET")
    assert limits == [None, None] and refused.value.status == 404 and refused.value.body == "ours"


def kfp_models() -> None:
    import kfp_server_api as api

    sent = {"display_name": "a", "runtime_config": {"parameters": {"n": 1}}}
    run = api.ApiClient().deserialize(Bag(data=json.dumps(sent)), "V2beta1Run")
    assert type(run) is api.V2beta1Run and api.ApiClient().sanitize_for_serialization(run) == sent
    assert {"ENABLE", "DISABLE"} <= set(api.RecurringRunMode.allowable_values)


def kfp_pipeline(tmp_path: Path) -> None:
    """A resource's parameter reaches its task; a package says its parameters."""
    from google.protobuf.json_format import MessageToDict
    from kfp import compiler, dsl
    from kfp.components import load_component_from_text

    @dsl.container_component
    def work(said: str):  # type: ignore[no-untyped-def]
        return dsl.ContainerSpec("image", ["true"], [said])

    @dsl.pipeline(name="tiny")
    def tiny(gpus: str = "0", steps: int = 3) -> None:
        task = work(said="x")
        task.set_accelerator_type("gpu").set_accelerator_limit(gpus)
        assert task.name == "work"

    compiler.Compiler().compile(tiny, str(file := tmp_path / "tiny.yaml"))
    spec = MessageToDict(load_component_from_text(file.read_text()).pipeline_spec)
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert spec["pipelineInfo"]["name"] == "tiny" and "dag" in spec["root"]
    assert parameters["steps"] == {"parameterType": "NUMBER_INTEGER", "defaultValue": 3, "isOptional": True}
    assert "pipelinechannel--gpus" in spec["root"]["dag"]["tasks"]["work"]["inputs"]["parameters"]


def kfp_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler calls what stands under that name in its module when a stage begins; there is no engine here."""
    import docker
    from kfp import local
    from kfp.local import docker_task_handler, status

    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(docker, "from_env", lambda: Bag(info=dict, close=lambda: None))
    monkeypatch.setattr(docker_task_handler, "run_docker_container", lambda **given: (calls.append(given), len(calls) - 1)[1])
    runner = local.DockerRunner(read_only=True, environment={"A": "b"})
    ends = [docker_task_handler.DockerTaskHandler("image", ["run"], "/root", runner).run() for _ in (0, 1)]
    assert ends == [status.Status.SUCCESS, status.Status.FAILURE]
    names = {"client", "image", "command", "volumes", "read_only", "environment"}
    assert calls[0].keys() == names and calls[0]["volumes"]["/root"]["bind"] == "/root"


def kfp_subprocess() -> None:
    from kfp.local.subprocess_task_handler import replace_python_executable

    assert replace_python_executable(["python3", "/a/python3/b"], "/py") == ["/py", "/a//py/b"], (
        "the refusal of such paths can go"
    )


def trainer() -> None:
    """A refusal is a RuntimeError whose cause has the status."""
    from kubeflow.trainer import KubernetesBackendConfig, TrainerClient
    from kubeflow.trainer.constants import constants
    from kubernetes import client as kubernetes

    with server() as url:
        settings = KubernetesBackendConfig(namespace="team", client_configuration=kubernetes.Configuration(host=url))
        client = TrainerClient(settings)
        with pytest.raises(RuntimeError) as refused:
            client.get_job("none")
    assert refused.value.__cause__.status == 404 and client.backend.namespace == "team" and constants.NODE == "node"
    assert isinstance(client.backend.custom_api, kubernetes.CustomObjectsApi)
    assert isinstance(client.backend.core_api, kubernetes.CoreV1Api)


def status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends nothing within seconds of the last time, keeps the token it has read, and one session."""
    from kubeflow.trainer.backends.kubernetes import utils

    for name, value in {"_last_update_time": -1e9, "_cached_token": None, "_http_session": None}.items():
        monkeypatch.setattr(utils, name, value)
    (tmp_path / "token").write_text("first")
    assert not utils._should_throttle() and utils._get_cached_token(str(tmp_path / "token")) == "first"
    utils._update_last_time()
    (tmp_path / "token").write_text("second")
    assert utils._should_throttle() and utils._get_cached_token(str(tmp_path / "token")) == "first"
    assert utils._get_status_session() is utils._http_session


def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import kubernetes.config.kube_config as kube
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob
    from kubernetes.client import Configuration

    one = {"name": "a", "cluster": {"server": "http://elsewhere"}, "user": {}, "context": {"cluster": "a", "user": "a"}}
    config = {"current-context": "a", **{key: [one] for key in ("clusters", "users", "contexts")}}
    (tmp_path / "config").write_text(json.dumps(config))
    monkeypatch.setattr(kube, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    kube.load_kube_config(client_configuration=(found := Configuration()))
    assert found.host == "http://elsewhere"
    job = {"kind": "TrainJob", "metadata": {"name": "a"}, "spec": {"runtimeRef": {"name": "torch-distributed"}}}
    assert TrainerV1alpha1TrainJob.from_dict({**job, "unknown": 1}).to_dict() == job
