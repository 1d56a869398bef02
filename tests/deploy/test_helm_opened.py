"""Where operators must open the chart, it opens, and nowhere else."""

from __future__ import annotations

from charts import VALUES, Manifest, render


def mlflow_of(manifests: list[Manifest]) -> Manifest:
    (found,) = (each for each in manifests if each["kind"] == "Deployment")
    return found["spec"]["template"]["spec"]


def test_without_fixed_ids_no_pod_names_a_user_or_a_group_and_all_are_still_confined() -> None:
    found = [each["spec"]["template"]["spec"] for each in render(VALUES["openshift"]) if "template" in each.get("spec", {})]
    assert len(found) >= 3
    for pod in found:
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & pod["securityContext"].keys()
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert (pod["securityContext"]["supplementalGroups"], pod["priorityClassName"]) == ([1001], "high")


def test_what_is_laid_over_the_security_context_leaves_the_rest() -> None:
    contexts = [
        each["spec"]["template"]["spec"]["securityContext"]
        for each in render({"podSecurityContext": {"runAsUser": 4711, "fsGroup": 4711}})
        if "template" in each.get("spec", {})
    ]
    assert {(c["runAsUser"], c["fsGroup"], c["runAsNonRoot"], c["seccompProfile"]["type"]) for c in contexts} == {
        (4711, 4711, True, "RuntimeDefault")
    }


def test_variables_volumes_ports_and_storage_classes_arrive() -> None:
    manifests = render(VALUES["openshift"])
    pod = mlflow_of(manifests)
    container = pod["containers"][0]
    assert {"name": "HTTPS_PROXY", "value": "http://proxy.example.org:3128"} in container["env"]
    assert {"name": "ca", "configMap": {"name": "company-ca"}} in pod["volumes"]
    assert {"name": "ca", "mountPath": "/etc/company", "readOnly": True} in container["volumeMounts"]
    (policy,) = (m for m in manifests if m["kind"] == "NetworkPolicy" and m["metadata"]["name"] == "marble-mlflow")
    ports = [(each["protocol"], each["port"]) for rule in policy["spec"]["egress"] for each in rule["ports"]]
    assert {("UDP", 53), ("UDP", 5353), ("TCP", 3128), ("TCP", 5432), ("TCP", 8333)} <= set(ports) and len(set(ports)) == len(
        ports
    )
    claims = [c["spec"]["storageClassName"] for m in manifests for c in m.get("spec", {}).get("volumeClaimTemplates", ())]
    assert sorted(claims) == ["fast", "slow"]


def test_an_ingress_below_a_prefix_leads_to_mlflow_which_knows_its_name_and_its_prefix() -> None:
    manifests = render(VALUES["ingress"])
    (ingress,) = (each for each in manifests if each["kind"] == "Ingress")
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert (rule["host"], path["path"], path["backend"]["service"]["name"]) == ("ml.example.org", "/mlflow", "marble-mlflow")
    assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"] == "256m"
    container = mlflow_of(manifests)["containers"][0]
    assert {"--static-prefix=/mlflow", "--expose-prometheus=/tmp/metrics"} <= set(container["args"])
    assert container["startupProbe"]["httpGet"]["path"] == "/mlflow/health"
    hosts = next(each["value"] for each in container["env"] if each["name"] == "MLFLOW_SERVER_ALLOWED_HOSTS")
    assert "ml.example.org" in hosts.split(",")
    (defaults,) = (m["data"] for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"] == "marble-defaults")
    assert defaults["MLFLOW_TRACKING_URI"] == "http://marble-mlflow.ml.svc:5000/mlflow"
    assert (
        next(m for m in manifests if m["kind"] == "Service" and m["metadata"]["name"] == "marble-mlflow")["spec"]["type"]
        == "NodePort"
    )


def test_awss_own_s3_is_given_no_address_and_another_is_s3s_alone_so_that_irsa_works() -> None:
    for values, address in (("ingress", ""), ("own_s3", "http://marble-s3.ml.svc:8333")):
        manifests = render(VALUES[values])
        (defaults,) = (m["data"] for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"] == "marble-defaults")
        env = {each["name"]: each.get("value") for each in mlflow_of(manifests)["containers"][0]["env"]}
        assert (defaults["AWS_ENDPOINT_URL_S3"], env["AWS_ENDPOINT_URL_S3"]) == (address, address)
        assert "AWS_ENDPOINT_URL" not in defaults.keys() | env.keys()


def test_an_s3_that_wants_buckets_in_the_hosts_name_is_asked_so_by_mlflow_and_the_pipelines_pods() -> None:
    for addressing in ("virtual", ""):
        manifests = render({"s3": {"endpoint": "https://oss.example.org", "addressing": addressing}})
        (defaults,) = (m["data"] for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"] == "marble-defaults")
        env = {each["name"]: each.get("value") for each in mlflow_of(manifests)["containers"][0]["env"]}
        assert not {name for name in (*defaults, *env) if "CHECKSUM" in name}
        assert (defaults.get("MARBLE_S3_ADDRESSING", ""), env.get("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "")) == (
            addressing,
        ) * 2


def test_an_s3_that_refuses_checksums_gets_none_from_mlflow_and_the_pipelines_pods() -> None:
    manifests = render(VALUES["air_gapped"])
    (defaults,) = (m["data"] for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"] == "marble-defaults")
    env = {each["name"]: each.get("value") for each in mlflow_of(manifests)["containers"][0]["env"]}
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        assert (defaults[name], env[name]) == ("when_required",) * 2


def test_nothing_is_open_by_default() -> None:
    manifests = render({})
    assert not any(each["kind"] == "Ingress" for each in manifests)
    services = [each["spec"] for each in manifests if each["kind"] == "Service"]
    assert all(each.get("type", "ClusterIP") == "ClusterIP" for each in services)
