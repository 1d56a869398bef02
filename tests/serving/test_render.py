"""marble serve --render: an InferenceService that KServe's published schema takes, and a Deployment that Kubernetes' does."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from commands import one_sentence, run_marble
from marble_core import __version__
from paths import TESTS

PUBLISHED = json.loads((TESTS / "serving" / "kserve_v1beta1.json").read_text())["schema"]
KSERVES_OWN = ("minReplicas", "maxReplicas")  # of a predictor, beside what is a pod's
ORDER = ("serve", "--preset", "sd35-medium-1gpu-24g", "--set", "registry.model=art")


def strict(schema: Any) -> Any:
    """As ``kubectl apply`` asks for it: what the schema does not name is an error."""
    if isinstance(schema, dict):
        schema = {key: strict(value) for key, value in schema.items()}
        if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
            return {"additionalProperties": False, **schema}
    return [strict(each) for each in schema] if isinstance(schema, list) else schema


@pytest.fixture
def render(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> list[dict[str, Any]]:
        assert run_marble(*ORDER, *arguments, monkeypatch=monkeypatch) == 0
        assert list(tmp_path.glob(".marble*")) == [], "no server is started"
        return list(yaml.safe_load_all(capsys.readouterr().out))

    return run


def pod_of(service: dict[str, Any]) -> dict[str, Any]:
    predictor = service["spec"]["predictor"]
    return {key: value for key, value in predictor.items() if key not in KSERVES_OWN}


def test_the_inference_service_is_what_kserves_published_schema_takes(render: Any) -> None:
    (service,) = render("--render", "kserve", "--name", "art")
    schema = strict(PUBLISHED)
    jsonschema.validate(service, schema)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "art"}, "spec": pod_of(service)}
    for kubernetes in ("1.28", "1.34"):
        kubernetes_validate.validate(pod, kubernetes, strict=True)
    (container,) = service["spec"]["predictor"]["containers"]
    assert container["name"] == "kserve-container" and container["image"] == f"marble-evaluate:{__version__}"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for wrong in ("imagePul", "readinessprobe"):
        broken = copy.deepcopy(service)
        broken["spec"]["predictor"]["containers"][0][wrong] = "x"
        with pytest.raises(jsonschema.ValidationError, match=wrong):
            jsonschema.validate(broken, schema)


def test_the_deployment_and_its_service_are_what_kubernetes_takes_and_find_each_other(render: Any) -> None:
    deployment, service = render("--render", "deployment")
    for kubernetes in ("1.28", "1.34"):
        for each in (deployment, service):
            kubernetes_validate.validate(each, kubernetes, strict=True)
    template = deployment["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    (container,) = template["spec"]["containers"]
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["containerPort"] == 8080
    assert container["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": 8080}


def test_the_pod_serves_what_was_asked_for_with_secrets_by_name_and_the_settings_file(render: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("evaluation: {steps: 7}\n")
    (tmp_path / "settings.yaml").write_text("""
images: {registry: registry.example/team, tag: "7", pull_secrets: [pull]}
secrets: [{name: keys, keys: [AWS_SECRET_ACCESS_KEY, OPENAI_API_KEY, HF_TOKEN], stages: [evaluate], optional: false}]
authority: {config_map: company-ca}
volumes: {cache_claim: models}
gpu: {node_selector: {gpu: H100}, labels: {kueue.x-k8s.io/queue-name: team}}
labels: {team: vision}
""")
    settings = ("--settings", "settings.yaml", "--config", "mine.yaml", "--set", "registry.model=$(HOME)")
    (service,) = render("--render", "kserve", *settings)
    pod = pod_of(service)
    (container,) = pod["containers"]
    assert container["image"] == "registry.example/team/marble-evaluate:7" and pod["imagePullSecrets"] == [{"name": "pull"}]
    env = {each["name"]: each for each in container["env"]}
    assert env["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "keys", "key": "HF_TOKEN", "optional": False}}
    assert "OPENAI_API_KEY" not in env and "MARBLE_WEBHOOK" not in env and env["HF_HOME"]["value"] == "/cache"
    assert env["MARBLE_CA"]["value"] == "/etc/marble-ca/ca.crt" and env["MLFLOW_TRACKING_URI"]["valueFrom"]
    assert (
        "kueue.x-k8s.io/queue-name" not in service["metadata"]["labels"] and service["metadata"]["labels"]["team"] == "vision"
    )
    args = container["args"]
    assert args[:3] == ["serve", "--preset", "sd35-medium-1gpu-24g"] and args[-4:] == ["--host", "0.0.0.0", "--port", "8080"]
    assert "registry.model=$$(HOME)" in args and any(each.startswith("evaluation={steps: 7}") for each in args)


def test_the_command_line_of_the_pod_is_one_that_marble_serve_reads(render: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the server: it is run with what would be served."""
    served: list[Any] = []
    (service,) = render("--render", "kserve", "--every", "5")
    (container,) = pod_of(service)["containers"]
    assert container["command"] == ["python", "-m", "marble_core.cli"]
    monkeypatch.setitem(sys.modules, "marble_core.serving.server", type(sys)("server"))
    sys.modules["marble_core.serving.server"].run = lambda *given: served.append(given)  # type: ignore[attr-defined]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert run_marble(*container["args"], monkeypatch=monkeypatch) == 0
    ((config, host, port, every, _),) = served
    assert (config.registry.model, host, port, every) == ("art", "0.0.0.0", 8080, 5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--render", "helm"), ("'helm'", "kserve")),
        (("--render", "kserve", "--name", "My Art"), ("'My Art'", "--name")),
        (("--name", "art"), ("--render",)),
    ],
)
def test_what_cannot_be_rendered_is_one_sentence(
    arguments: tuple[str, ...], says: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_marble(*ORDER, *arguments, monkeypatch=monkeypatch) == 2
    one_sentence(capsys.readouterr().err, *says)
