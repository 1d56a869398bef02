"""A published file comes from where its address says, and in a time that ends."""

import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from marble_core.services.certificates import close_ports
from marble_core.storage import downloads
from marble_core.storage.uri import resolve
from marble_core.types import MarbleError
from stub_hub import StubHub, serving


@pytest.fixture
def https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """The address of an https server that leads to the address that it is given."""
    close_ports(tmp_path)
    to = [""]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", to[0])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls" / "cert.pem", tmp_path / "tls" / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "tls" / "cert.pem"))

    def leading(target: str) -> str:
        to[0] = target
        return f"https://127.0.0.1:{server.server_port}/head.pth"

    with serving(server):
        yield leading


def test_an_https_address_does_not_lead_to_a_plain_one(https: Callable[[str], str], hub: StubHub, cache: Path) -> None:
    (hub.root / "web").mkdir(parents=True)
    (hub.root / "web" / "head.pth").write_text("x")
    with pytest.raises(MarbleError, match=r"head\.pth leads to a plain http address"):
        resolve(https(f"{hub.url}/files/web/head.pth"))


@pytest.mark.parametrize("inside", ["127.0.0.1", "169.254.169.254", "[::1]", "localhost"])
def test_an_address_of_the_net_does_not_lead_into_this_machine(inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = downloads._Redirects()
    asked = downloads.urllib.request.Request("https://192.0.2.1/head.pth")
    with pytest.raises(MarbleError, match="inside this machine"):
        handler.redirect_request(asked, None, 302, "", {}, f"https://{inside}/latest/meta-data")


@pytest.mark.parametrize("line", [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n", b""])
def test_a_server_that_drips_its_headers_is_left(line: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_WINDOW", 0.3)
    enough = threading.Event()

    class Drips(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(line or b"HTTP/1.1 ")
            while not enough.wait(0.05):
                self.wfile.write(b"X-More: x\r\n" if line else b"2")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Drips)
    with serving(server):
        try:
            with pytest.raises(MarbleError, match=r"cannot be reached \(it has not answered within 0\.3 s\)"):
                resolve(f"http://127.0.0.1:{server.server_port}/head.pth")
        finally:
            enough.set()


def test_a_server_that_drips_is_left(hub: StubHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_WINDOW", 0.3)
    enough = threading.Event()

    def drip(request: BaseHTTPRequestHandler, *_: object) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000000")
        request.end_headers()
        while not enough.wait(0.05):
            request.wfile.write(b"x")
            request.wfile.flush()

    (hub.root / "web").mkdir(parents=True)
    (hub.root / "web" / "head.pth").write_text("x")
    monkeypatch.setattr(hub, "_file", drip)
    try:
        with pytest.raises(MarbleError, match=r"head\.pth broke off \(\d+ bytes in 0 s\)"):
            resolve(f"{hub.url}/files/web/head.pth")
    finally:
        enough.set()
