"""Helm's own engine asks a stub of Kubernetes for the Secrets that the chart needs, as helm install and upgrade do."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import helm_python
import pytest

from charts import CHART, VALUES
from stub_hub import serving

HERE = "/api/v1/namespaces/ml/secrets"
RESOURCE = {"name": "secrets", "singularName": "secret", "namespaced": True, "kind": "Secret", "verbs": ["get", "list"]}
SERVERS = {"marble-s3": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}, "marble-postgres": {"password"}}
Render = Callable[[str, dict[str, set[str]]], list[str]]


@pytest.fixture
def render() -> Iterator[Render]:
    """The templates that one of the files of values makes, where there are these Secrets with these keys."""
    secrets: dict[str, set[str]] = {}

    class Kubernetes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, name = self.path.partition("?")[0], self.path.rpartition("/")[2]
            status, answer = 404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            if path == "/api/v1":
                status, answer = 200, {"kind": "APIResourceList", "groupVersion": "v1", "resources": [RESOURCE]}
            elif path == HERE:
                status, answer = 200, {"kind": "SecretList", "apiVersion": "v1", "metadata": {}, "items": []}
            elif path == f"{HERE}/{name}" and name in secrets:
                data = dict.fromkeys(secrets[name], "eA==")
                status, answer = 200, {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": name}, "data": data}
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Kubernetes)
    with serving(server):
        address = f"http://127.0.0.1:{server.server_port}"
        cluster = helm_python.Config(kube_apiserver=address, namespace="ml", storage_driver="memory")

        def with_secrets(values: str, there: dict[str, set[str]]) -> list[str]:
            secrets.clear()
            secrets.update(there)
            return list(cluster.render(helm_python.Chart.load(str(CHART)), VALUES[values], name="marble", namespace="ml"))

        yield with_secrets


@pytest.mark.parametrize(
    ("values", "there", "missing"),
    [
        ("minimal", {}, "marble-postgres/password, marble-s3/AWS_ACCESS_KEY_ID, marble-s3/AWS_SECRET_ACCESS_KEY"),
        ("minimal", SERVERS | {"marble-s3": {"AWS_ACCESS_KEY_ID"}}, "marble-s3/AWS_SECRET_ACCESS_KEY"),
        ("authentication", SERVERS, "marble-mlflow-admin/MLFLOW_AUTH_ADMIN_USERNAME, marble-mlflow-admin/"),
        ("external_postgres", {}, "marble-postgres/password. "),  # on AWS's S3 with the default credential chain
    ],
)
def test_a_secret_that_is_missing_ends_the_installation_at_once_with_its_name(
    render: Render, values: str, there: dict[str, set[str]], missing: str
) -> None:
    with pytest.raises(helm_python.HelmRenderError) as refused:
        render(values, there)
    assert f"missing in the namespace ml (name/key): {missing}" in str(refused.value)


def test_secrets_that_are_there_are_enough(render: Render) -> None:
    assert "marble/templates/mlflow.yaml" in render("minimal", SERVERS)
