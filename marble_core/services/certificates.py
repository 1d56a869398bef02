"""What closes SeaweedFS's own ports: master, volume, filer and admin speak only to who shows the certificate that lies here."""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path

_GRPC = ("master", "volume", "filer", "s3", "admin", "worker", "client", "mq", "msg_broker", "msg_agent")
_HTTPS = ("master", "volume", "filer", "admin", "client")
_PAIR = 'cert = "tls/cert.pem"\nkey = "tls/key.pem"\n'  # below the working directory, so that no path needs quoting


def close_ports(root: Path) -> None:
    """Leaves ``root/security.toml``, which `weed` reads where it is started, and the key pair in ``root/tls`` (mode 600).

    The key is made once, and signs itself: whoever can read it is this user. The S3 port is not concerned, it asks for keys.
    """
    directory = root / "tls"
    directory.mkdir(mode=0o700, exist_ok=True)
    if not (directory / "cert.pem").exists():
        key, certificate = _self_signed()
        for name, content in (("key.pem", key), ("cert.pem", certificate)):  # the certificate last: with it the pair is whole
            write_private(directory / name, content)
    lines = ['[grpc]\nca = "tls/cert.pem"\n', *(f"[grpc.{part}]\n{_PAIR}" for part in _GRPC)]
    lines += [f'[https.{part}]\n{_PAIR}ca = "tls/cert.pem"\n' for part in _HTTPS]
    lines.append("enabled = true\n")  # of the client, which stands last
    write_private(root / "security.toml", "".join(lines).encode())


def write_private(path: Path, content: bytes) -> None:
    """Whole or not at all, and never readable by others, not even for a moment."""
    draft = path.with_name(f"{path.name}.draft")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    draft.rename(path)


def _self_signed() -> tuple[bytes, bytes]:
    """A key and its certificate for 127.0.0.1, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "marble")])
    now, years = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=36500)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + years)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain), certificate.public_bytes(pem)
