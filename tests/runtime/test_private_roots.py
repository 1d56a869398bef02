"""A private authority is trusted beside the public ones, by every client, through one variable."""

import datetime
import ipaddress
import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from marble_core.runtime.certificates import READ_BY, trust_private_roots
from marble_core.storage.s3 import S3
from marble_core.tracking.connection import mlflow_client
from marble_core.types import MarbleError
from peculiar_s3 import as_it_is, before, peculiar


def certificate(name: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey) -> bytes:
    """An authority where ``name`` is ``issuer``, else a server of this machine."""
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, issuer)]
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(names[1], names[0], key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    builder = builder.add_extension(x509.BasicConstraints(name == issuer, None), critical=True)
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
    )
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
    ).add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ssl.SSLContext]:
    """The authority's file, and what a server of the company shows."""
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    (tmp_path / "authority.pem").write_bytes(certificate("company", authority, "company", authority))
    (tmp_path / "server.pem").write_bytes(certificate("server", server, "company", authority))
    private = serialization.PrivateFormat.PKCS8
    (tmp_path / "key.pem").write_bytes(server.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "server.pem", tmp_path / "key.pem")
    for name in (*READ_BY, "MARBLE_CA"):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever is set meanwhile
        monkeypatch.delenv(name)
    return tmp_path / "authority.pem", tls


def test_s3_mlflow_and_every_other_client_trust_the_private_roots_and_the_public_ones_still(
    services: dict[str, str], company: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, tls = company
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with peculiar(services, as_it_is, tls=tls) as s3, before(services["MLFLOW_TRACKING_URI"], as_it_is, tls) as tracking:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
        mlflow.set_tracking_uri(tracking)
        with monkeypatch.context() as empty, pytest.raises(MarbleError, match=r"AWS_CA_BUNDLE.* empty"):
            empty.setenv("AWS_CA_BUNDLE", "")
            S3("marble")
        with pytest.raises(MarbleError, match=r"certificate .* is not trusted .* MARBLE_CA"):
            S3("marble").require_bucket()
        with pytest.raises(MarbleError, match=r"CERTIFICATE_VERIFY_FAILED.*MARBLE_CA"), mlflow_client() as client:
            client.search_experiments()
        monkeypatch.setenv("MARBLE_CA", str(authority))
        trust_private_roots()
        S3("marble").require_bucket()
        with mlflow_client() as client:
            assert client.search_experiments()
        # The server is trusted, and asks for its key.
        assert urllib3.PoolManager().request("GET", tracking).status == 401, "remote scorers"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(tracking)  # https:// sources
        asked = f"import httpx2; print(httpx2.get('{tracking}').status_code)"
        done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "401", f"the hub, in a process of its own: {done.stderr}"
    assert len(ssl.create_default_context().get_ca_certs()) > 100, "the public ones"
    files = {os.environ[name] for name in READ_BY}
    trust_private_roots()  # as a stage below this process does
    assert {os.environ[name] for name in READ_BY} == files and len(files) == 1
    assert Path(files.pop()).stat().st_mode & 0o077 == 0


def test_the_users_own_file_for_one_client_is_kept_and_a_file_without_certificates_is_one_sentence(
    company: tuple[Path, ssl.SSLContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, _ = company
    (tmp_path / "own.pem").write_bytes((tmp_path / "server.pem").read_bytes())
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "own.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))  # as a pod has it, for others than us
    monkeypatch.setenv("MARBLE_CA", str(authority))
    trust_private_roots()
    assert Path(os.environ["AWS_CA_BUNDLE"]).read_bytes().count(b"BEGIN CERTIFICATE") == 2
    assert Path(os.environ["REQUESTS_CA_BUNDLE"]).read_bytes().count(b"BEGIN CERTIFICATE") > 100
    (tmp_path / "none.pem").write_text("no certificates")
    for path, reason in ((tmp_path / "none.pem", "no certificate in PEM form"), (tmp_path / "gone.pem", "No such file")):
        monkeypatch.setenv("MARBLE_CA", str(path))
        with pytest.raises(MarbleError, match=rf"MARBLE_CA, .*{path.name}, cannot be used: .*{reason}"):
            trust_private_roots()
