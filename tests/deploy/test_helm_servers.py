"""The chart's servers, started as their manifests say: Debian's Postgres, SeaweedFS and MLflow, used by their in-cluster names.

Two releases: ``marble`` runs Postgres, S3 and MLflow with passwords; ``open`` is given the other's Postgres and S3 as what
exists already, and asks nobody for a password.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from charts import VALUES, render
from marble_kubeflow.pipelines.marble import PACKAGE
from paths import ROOT, TESTS
from pods import Cluster, Manifest

SECRETS = {
    "marble-s3": {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "a/secret+key="},
    "marble-postgres": {"password": "p@ss:/w?rd% #'\""},
    "marble-mlflow-admin": {
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": "as long as it must be",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for the forms",
    },
    "serviceAccountToken": {"token": "of-the-account"},
}
GIVEN = {
    "mlflow": {"port": 5001, "workers": 1},
    "database": {"host": "marble-postgres.ml.svc"},
    "s3": {"endpoint": "http://marble-s3.ml.svc:8333"},
}
# What the official image's entry point does with the same variables.
POSTGRES = r"""
set -e
initdb --no-sync --auth=scram-sha-256 --username="$POSTGRES_USER" --pwfile=<(printf %s "$POSTGRES_PASSWORD") -D "$PGDATA"
printf "listen_addresses = '*'\nfsync = off\n" >> "$PGDATA/postgresql.conf"
printf 'host all all all scram-sha-256\n' >> "$PGDATA/pg_hba.conf"
printf 'CREATE DATABASE "%s";' "$POSTGRES_DB" | postgres --single -D "$PGDATA" postgres
exec "$@"
"""
# Every port at which somebody listens: [whether on loopback alone, port].
LISTENING = """
import json
found = []
for name in ("tcp", "tcp6"):
    for line in open(f"/proc/net/{name}").read().splitlines()[1:]:
        place, state = line.split()[1], line.split()[3]
        address, port = place.split(":")
        if state == "0A":
            found.append([address in ("0100007F", "0" * 24 + "01000000", "0000000000000000FFFF00000100007F"), int(port, 16)])
print(json.dumps(found))
"""
OTHERS = {5432, 5000, 5001}  # Postgres, and MLflow's where another test has started them
# What the beginning of a gRPC connection is answered.
GRPC = r"""
import json, socket, ssl, sys
host, port, *pair = sys.argv[1:]
def ask(tls, pair=None):
    with socket.create_connection((host, int(port)), 20) as connection:
        try:
            if tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                context.set_alpn_protocols(["h2"])
                if pair:
                    context.load_cert_chain(*pair)
                connection = context.wrap_socket(connection)
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            return connection.recv(64).hex()
        except ssl.SSLError as error:
            return error.reason
        except OSError as error:
            return type(error).__name__
print(json.dumps({"in the clear": ask(False), "without a certificate": ask(True), "with the server's own": ask(True, pair)}))
"""
EXPERIMENTS = "/api/2.0/mlflow/experiments/search?max_results=1"


@pytest.fixture(scope="module")
def cluster(postgres: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """With Postgres and S3, both ready."""
    manifests = render(VALUES["authentication"]) + render(GIVEN, name="open-marble")
    with Cluster(manifests, "ml", SECRETS, tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.start("StatefulSet", "marble-postgres", entrypoint=["bash", "-c", POSTGRES, "entrypoint"])
        cluster.start("StatefulSet", "marble-s3")
        yield cluster


def basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def test_the_s3_server_asks_for_the_keys_and_nothing_else_of_it_can_be_reached(cluster: Cluster) -> None:
    assert cluster.fetch("http://marble-s3:8333/")[0] == 403
    assert cluster.fetch("http://localhost:8888/")[0] == 200  # the filer lets anyone in, and so:
    listening = json.loads(cluster.run_python(LISTENING))
    assert {8888, 9333, 9340, 8333, 18333, 23646} <= {port for _, port in listening}
    for port in {port for _, port in listening} - {8333, 18333, *OTHERS}:
        assert cluster.fetch(f"http://marble-s3:{port}/")[0] == 0, port
    beyond = {port for loopback, port in listening if not loopback}
    assert beyond - OTHERS == {8333, 18333}
    published = {name: str(ROOT / "helm/marble/files/s3" / name) for name in ("cert.pem", "key.pem")}
    asked = json.loads(cluster.run_python(GRPC, "marble-s3", "18333", *published.values()))
    assert asked["in the clear"] in ("", "ConnectionResetError")
    assert asked["without a certificate"] == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    assert asked["with the server's own"] == "SSLV3_ALERT_BAD_CERTIFICATE"


def test_nobody_can_have_the_private_key_of_the_authority_that_the_grpc_port_asks_for() -> None:
    """Its public key is the first point of P-256 whose x coordinate is a hash of the sentence that is its name."""
    authority = x509.load_pem_x509_certificate((ROOT / "helm/marble/files/s3/ca.pem").read_bytes())
    sentence = authority.subject.rfc4514_string().removeprefix("CN=").replace("\\,", ",")
    curve, number = ec.SECP256R1(), 0
    while True:
        x = hashlib.sha256(f"{sentence} {number}".encode()).digest()
        try:
            point = ec.EllipticCurvePublicKey.from_encoded_point(curve, b"\x02" + x)
            break
        except ValueError:
            number += 1
    assert authority.public_key() == point and sentence.startswith("Nobody has the private key")


def test_mlflow_works_by_its_name_in_the_cluster_on_postgres_and_s3_with_a_password(cluster: Cluster) -> None:
    """The upgrade job prepares an empty database, and the chart's own test then passes; it does what `helm test` would."""
    upgraded = cluster.run("Job", "open-marble-mlflow-upgrade")
    assert upgraded.returncode == 0, upgraded.stderr
    cluster.start("Deployment", "marble-mlflow")
    tested = cluster.run("Pod", "marble-test")
    assert tested.returncode == 0, tested.stderr
    assert "http://marble-mlflow.ml.svc:5000 keeps metrics and artifacts" in tested.stdout
    admin = basic("admin", "as long as it must be")
    for host in (
        "marble-mlflow",
        "marble-mlflow.ml",
        "marble-mlflow.ml.svc",
        "marble-mlflow.ml.svc.cluster.local",
        "localhost",
    ):
        assert cluster.fetch(f"http://{host}:5000{EXPERIMENTS}", admin)[0] == 200, host
    assert cluster.fetch(f"http://marble-mlflow:5000{EXPERIMENTS}")[0] == 401
    assert cluster.fetch(f"http://marble-mlflow:5000{EXPERIMENTS}", basic("admin", "guessed"))[0] == 401
    assert cluster.fetch(f"http://{cluster.addresses['marble-mlflow']}:5000{EXPERIMENTS}", admin)[0] == 403


def test_without_the_allowed_hosts_mlflow_refuses_its_own_name_and_its_probes_do_not_see_it(cluster: Cluster) -> None:
    cluster.start("Deployment", "open-marble-mlflow", without=["MLFLOW_SERVER_ALLOWED_HOSTS"])
    status, said = cluster.fetch(f"http://open-marble-mlflow.ml.svc:5001{EXPERIMENTS}")
    assert (status, said) == (403, "Invalid Host header - possible DNS rebinding attack detected")
    assert cluster.fetch("http://open-marble-mlflow.ml.svc:5001/health")[0] == 200
    assert cluster.fetch(f"http://localhost:5001{EXPERIMENTS}")[0] == 200
    tested = cluster.run("Pod", "open-marble-test")
    assert tested.returncode != 0 and "Invalid Host header" in tested.stderr


KUBEFLOW = """
import sys
from http.server import ThreadingHTTPServer
from stub_kfp import StubKfp
ThreadingHTTPServer(("0.0.0.0", 8888), StubKfp("of-the-account", "alice").server.RequestHandlerClass).serve_forever()
"""


def test_the_hook_uploads_the_pipeline_and_sets_its_recurring_run_once(tmp_path: Path) -> None:
    """An installation, an upgrade that changes nothing, and one that changes when it runs."""
    values = yaml.safe_load((TESTS / "helm" / "multi_user.yaml").read_text())
    values["s3"] = {"bucket": "training"}
    values["pipeline"] |= {"package": PACKAGE.read_text(), "parameters": {"preset": "demo"}}
    service = {"kind": "Service", "metadata": {"name": "ml-pipeline"}}

    def installed(cron: str) -> list[Manifest]:
        return [*render({**values, "pipeline": {**values["pipeline"], "cron": cron}}), service]

    with Cluster(installed("0 3 * * *"), "kubeflow", SECRETS, tmp_path) as cluster:
        cluster.background("env", f"PYTHONPATH={TESTS}:{ROOT}", sys.executable, "-c", KUBEFLOW)
        schedules = "http://ml-pipeline.kubeflow.svc:8888/apis/v2beta1/recurringruns?namespace=alice"
        assert cluster.fetch(schedules, seconds=60)[0] == 401
        made = []
        for cron in ("0 3 * * *", "0 3 * * *", "30 4 * * *"):
            cluster.install(installed(cron))
            done = cluster.run("Job", "marble-schedule")
            assert done.returncode == 0, done.stderr
            (schedule,) = json.loads(cluster.fetch(schedules, "Bearer of-the-account")[1])["recurringRuns"]
            made.append((schedule["recurring_run_id"], schedule["trigger"]["cron_schedule"]["cron"]))
            assert schedule["runtime_config"]["parameters"]["bucket"] == "training"
            assert (schedule["display_name"], schedule["service_account"]) == ("marble-nightly", "default-editor")
        assert made[0] == made[1] and made[2][0] != made[0][0]
        assert [cron for _, cron in made] == ["0 0 3 * * *", "0 0 3 * * *", "0 30 4 * * *"]
