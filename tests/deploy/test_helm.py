"""The chart: strict lint, every manifest by Kubernetes' own schemas, what it may and may not say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from charts import CHART, VALUES, Manifest, render
from marble_core.runtime import environment
from marble_core.training import trainjob
from marble_core.types import MarbleError
from marble_kubeflow.pipelines.settings import Settings
from stub_kube import StubKube
from train_pod import PODS, Stage


@pytest.fixture(scope="module", params=VALUES)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(VALUES[request.param])


def of(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def pods(manifests: list[Manifest]) -> Iterator[Manifest]:
    """The templates of everything that makes pods, and pods."""
    for each in manifests:
        if each["kind"] == "Pod":
            yield each
        elif "template" in each.get("spec", {}):
            yield each["spec"]["template"]


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else key)
    else:
        yield path, node


@pytest.mark.parametrize("values", VALUES)
def test_the_chart_lints_strictly(values: str) -> None:
    report = helm_python.lint(str(CHART), VALUES[values], strict=True)
    assert report["errors"] == [] and [each for each in report["messages"] if each["severity"] > 1] == []


@pytest.mark.parametrize("kubernetes", ["1.28", "1.34"])
def test_every_manifest_is_strictly_valid_and_none_is_there_twice(manifests: list[Manifest], kubernetes: str) -> None:
    for manifest in manifests:
        kubernetes_validate.validate(manifest, kubernetes, strict=True)
    names = [(each["kind"], each["metadata"]["name"], each["metadata"].get("namespace", "ml")) for each in manifests]
    assert len(set(names)) == len(names) >= 3


def test_no_manifest_holds_a_secret(manifests: list[Manifest]) -> None:
    """Secrets are named and never made; whatever sounds like one comes from a Secret; no address carries a password."""
    assert "Secret" not in {each["kind"] for each in manifests}
    sensitive = re.compile(r"PASSWORD|SECRET|TOKEN$|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
    for pod in pods(manifests):
        for container in pod["spec"]["containers"]:
            for variable in container["env"]:
                if sensitive.search(variable["name"]):
                    assert set(variable["valueFrom"]) == {"secretKeyRef"}, variable
    assert not re.search(r"://[^/\s\"@]*:[^/\s\"@]*@", json.dumps(manifests))


def test_every_pod_is_confined(manifests: list[Manifest]) -> None:
    for pod in pods(manifests):
        spec = pod["spec"]
        assert spec["enableServiceLinks"] is False  # MLFLOW_PORT=tcp://... would be read as an option
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert not any("hostPath" in volume for volume in spec.get("volumes", []))
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]


def test_jobs_get_no_sidecar_that_would_keep_them_from_ending() -> None:
    manifests = render({**VALUES["multi_user"], "istio": {"sidecar": True}})
    for each in manifests:
        if each["kind"] in ("Job", "Pod"):
            (pod,) = pods([each])
            assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
    assert {pod["metadata"]["labels"]["sidecar.istio.io/inject"] for pod in pods(manifests)} == {"true", "false"}


def test_policies_and_services_select_the_pods_that_they_mean(manifests: list[Manifest]) -> None:
    labels = [pod["metadata"]["labels"] for pod in pods(manifests)]

    def selected(selector: dict[str, str]) -> int:
        return sum(selector.items() <= each.items() for each in labels)

    for service in of(manifests, "Service").values():
        assert selected(service["spec"]["selector"]) == 1
    for policy in of(manifests, "NetworkPolicy").values():
        assert selected(policy["spec"]["podSelector"]["matchLabels"]) == 1
        assert all(rule["from"] for rule in policy["spec"]["ingress"])  # none at all would mean everybody
    if postgres := of(manifests, "NetworkPolicy").get("marble-postgres"):
        peers = [peer["podSelector"]["matchLabels"] for peer in postgres["spec"]["ingress"][0]["from"]]
        assert {peer["app.kubernetes.io/component"] for peer in peers} == {"mlflow", "mlflow-upgrade"}


def rights(manifests: list[Manifest], kind: str) -> set[tuple[str, str]]:
    rules = [rule for each in of(manifests, kind).values() for rule in each["rules"]]
    return {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


def test_the_profile_may_do_what_the_train_stage_asks_of_kubernetes_and_no_more(
    kube: StubKube,
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job that is created, one that another attempt adopts, one that is too late, and one that is removed."""
    kube.start = stage.trained(kube)
    stage()
    monkeypatch.setenv("POD_UID", "uid-2")
    stage()
    trainjob.TrainJob(next(iter(kube.jobs))).remove()
    kube.start = lambda job: None
    monkeypatch.setenv(environment.NODES, json.dumps(json.loads(PODS) | {"seconds": 0}))
    monkeypatch.setattr(trainjob, "LAST_LINES", 0.1)
    with pytest.raises(MarbleError, match="not done within"):
        stage()
    asked = set()
    for method, path in kube.calls:
        scope = re.fullmatch(r"/apis?/.*?v1(?:alpha1)?(?:/namespaces/team)?/(\w+)(/[\w-]+)?(/log)?", path)
        if scope:  # the SDK also looks for its version in Kubeflow's own namespace, and does without
            resource, named, log = scope.groups()
            verb = {"GET": "get" if named else "list", "POST": "create", "PATCH": "patch", "DELETE": "delete"}[method]
            asked.add((resource + (log or ""), verb))
    manifests = render({"profile": {"namespace": "alice", "serviceAccount": "default-editor"}})
    assert rights(manifests, "ClusterRole") == {("clustertrainingruntimes", "get")}
    assert rights(manifests, "Role") | rights(manifests, "ClusterRole") == asked
    for binding in [*of(manifests, "RoleBinding").values(), *of(manifests, "ClusterRoleBinding").values()]:
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "default-editor", "namespace": "alice"}]
    theirs = [each for each in manifests if each["kind"] in ("ConfigMap", "Role", "RoleBinding")]
    assert {each["metadata"].get("namespace") for each in theirs if each["metadata"]["name"] != "marble-s3-grpc"} == {"alice"}


def test_what_exists_already_is_used_and_not_made() -> None:
    aws = render(VALUES["external_postgres"])
    assert of(aws, "StatefulSet") == {}
    (mlflow,) = (pod for pod in pods(aws) if pod["metadata"]["labels"]["app.kubernetes.io/component"] == "mlflow")
    assert "AWS_ACCESS_KEY_ID" not in {variable["name"] for variable in mlflow["spec"]["containers"][0]["env"]}
    defaults = of(render(VALUES["existing_servers"]), "ConfigMap")["marble-defaults"]["data"]
    assert defaults["MLFLOW_TRACKING_URI"] == "http://marble-mlflow.ml.svc:5000"
    assert defaults["AWS_ENDPOINT_URL_S3"] == "http://marble-s3.ml.svc:8333"


def test_the_upgrade_runs_before_an_installation_only_where_the_database_is_there() -> None:
    def hook(values: str) -> str:
        return of(render(VALUES[values]), "Job")["marble-mlflow-upgrade"]["metadata"]["annotations"]["helm.sh/hook"]

    assert (hook("minimal"), hook("external_postgres")) == ("pre-upgrade", "pre-install,pre-upgrade")


def test_one_registry_takes_the_place_of_all() -> None:
    values = {**VALUES["air_gapped"], "pipeline": VALUES["multi_user"]["pipeline"], "s3": {}}
    images = {container["image"] for pod in pods(render(values)) for container in pod["spec"]["containers"]}
    assert images == {
        "registry.example.org:5000/mirror/mlflow/mlflow:v3.17.2-full",
        f"registry.example.org:5000/mirror/library/postgres@sha256:{1:064x}",
        "registry.example.org:5000/mirror/chrislusf/seaweedfs:4.48",
        "registry.example.org:5000/mirror/marble-cli:0.1.0",
    }


def test_the_longest_release_name_gives_names_that_kubernetes_takes() -> None:
    manifests = render(VALUES["multi_user"], name="a" * 53)
    assert all(len(each["metadata"]["name"]) <= 63 for each in manifests if each["kind"] != "ClusterRole")
    assert all(len(name) <= 52 for name in of(manifests, "StatefulSet"))


def test_the_pipelines_pods_find_the_defaults_and_secrets_by_the_names_that_they_are_compiled_with() -> None:
    settings = Settings()
    (source,) = settings.config_maps
    assert set(source.keys) == set(of(render(VALUES["air_gapped"]), "ConfigMap")[source.name]["data"])
    keys = {source.name: set(source.keys) for source in settings.secrets}
    assert keys["marble-s3"] == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    readme = (CHART / "README.md").read_text()
    assert all(name in readme for name in keys)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("{s3: {endpoint: nope}}", "/s3/endpoint"),
        ("{s3: {endpoint: 'https://key:secret@s3.example.org'}}", "/s3/endpoint"),
        ("{s3: {existingSecret: ''}}", "/s3/existingSecret"),  # the chart's own server would serve anyone
        ("{s3: {secretKey: abc}}", "'secretKey' not allowed"),
        ("{s3: {bucket: A}}", "/s3/bucket"),
        ("{s3: {storage: {size: big}}}", "/s3/storage/size"),
        ("{database: {password: abc}}", "'password' not allowed"),
        ("{database: {host: 'postgresql://u:p@h/d'}}", "/database/host"),
        ("{database: {port: '5432'}}", "/database/port"),
        ("{database: {sslMode: verify-full}}", "/database/sslRootSecret"),
        ("{mlflow: {prot: 5000}}", "'prot' not allowed"),
        ("{mlflow: {port: 80}}", "/mlflow/port"),  # needs a capability
        ("{mlflow: {workers: 0}}", "/mlflow/workers"),
        ("{mlflow: {enabled: false}}", "/mlflow/uri"),
        ("{mlflow: {allowedHosts: ['*']}}", "/mlflow/allowedHosts/0"),
        ("{mlflow: {auth: {defaultPermission: read}}}", "/mlflow/auth/defaultPermission"),
        ("{mlflow: {resources: {limits: {memory: much}}}}", "/mlflow/resources/limits/memory"),
        ("{images: {s3: {tag: 4.48}}}", "/images/s3/tag"),
        ("{images: {postgres: {digest: abc}}}", "/images/postgres/digest"),
        ("{profile: {namespace: Alice}}", "/profile/namespace"),
        ("{pipeline: {endpoint: 'http://ml-pipeline.kubeflow.svc:8888'}}", "/pipeline/package"),
        ("{pipeline: {cron: nightly}}", "/pipeline/cron"),
        ("{tolerations: [{key: a, operator: Exist}]}", "/tolerations/0/operator"),
        ("{podLabels: {team: 1}}", "/podLabels/team"),
        ("{mlflow: {extraEnv: [{name: DB_PASSWORD, value: abc}]}}", "/mlflow/extraEnv/0"),  # a secret is no value
        ("{mlflow: {extraEnv: [{name: HTTPS_PROXY, value: 'http://u:p@proxy'}]}}", "/mlflow/extraEnv/0/value"),
        ("{mlflow: {extraArgs: ['$(rm)']}}", "/mlflow/extraArgs/0"),
        ("{mlflow: {extraVolumes: [{name: node, hostPath: {path: /}}]}}", "'hostPath' not allowed"),
        ("{mlflow: {staticPrefix: mlflow/}}", "/mlflow/staticPrefix"),
        ("{podSecurityContext: {runAsUser: 0}}", "/podSecurityContext/runAsUser"),
        ("{podSecurityContext: {runAsNonRoot: false}}", "'runAsNonRoot' not allowed"),
        ("{networkPolicy: {dnsPorts: []}}", "/networkPolicy/dnsPorts"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_by_its_name(values: str, said: str) -> None:
    with pytest.raises(helm_python.HelmValuesError, match=re.escape(said)):
        render(yaml.safe_load(values))


def test_every_value_is_explained_where_it_is_set_and_in_the_readme() -> None:
    text = (CHART / "values.yaml").read_text()
    readme = (CHART / "README.md").read_text()
    named = set(re.findall(r"^\| `([\w.]+)`", readme, re.MULTILINE))
    paths = {path for path, _ in leaves(yaml.safe_load(text))}
    assert {path for path in paths if not any(path == each or path.startswith(f"{each}.") for each in named)} == set()
    assert {each for each in named if not any(path == each or path.startswith(f"{each}.") for path in paths)} == set()
