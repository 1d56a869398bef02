"""A model hub on loopback: the few routes of its protocol that a download takes, with files from a directory."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


class StubHub:
    """Serves ``root/organisation/name/...``. ``asked`` are the paths that were requested, ``tokens`` those that came."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked, self.tokens = root, [], set()
        self.gated: set[str] = set()
        self.revisions = {"main": COMMIT, "v1": "b" * 40}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub._answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append(f"{request.command} {path}")
        self.tokens.add(request.headers.get("Authorization", ""))
        parts = path.strip("/").split("/")
        if parts[0] == "files":
            return self._file(request, self.root.joinpath(*parts[1:]), {})
        api = parts[:2] == ["api", "models"]
        name, rest = ("/".join(parts[2:4]), parts[4:]) if api else ("/".join(parts[:2]), parts[2:])
        folder = self.root / name
        revision = rest[1] if len(rest) > 1 else "main"
        commit = revision if revision in self.revisions.values() else self.revisions.get(revision)
        if not folder.is_dir():
            return self._error(request, 401, "RepoNotFound", "Invalid username or password.")
        if commit is None:
            return self._error(request, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        if api and rest[:1] == ["tree"]:
            listing = [self._entry(file, folder) for file in files]
            return self._send(request, 200, json.dumps(listing).encode())
        if api:
            siblings = [
                {"rfilename": entry["path"], "size": entry["size"]} for entry in (self._entry(f, folder) for f in files)
            ]
            return self._send(request, 200, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode())
        if name in self.gated:
            return self._error(
                request, 403 if request.headers.get("Authorization") else 401, "GatedRepo", "Access is restricted."
            )
        file = folder.joinpath(*rest[2:])
        if not file.is_file():
            return self._error(request, 404, "EntryNotFound", "Entry not found")
        return self._file(request, file, {"X-Repo-Commit": commit})

    def _entry(self, file: Path, folder: Path) -> dict[str, object]:
        content = file.read_bytes()
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": file.relative_to(folder).as_posix(), "size": len(content), "oid": oid}

    def _file(self, request: BaseHTTPRequestHandler, file: Path, headers: dict[str, str]) -> None:
        if not file.is_file():
            return self._send(request, 404, b"")
        content = file.read_bytes()
        self._send(request, 200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', **headers})

    def _error(self, request: BaseHTTPRequestHandler, status: int, code: str, message: str) -> None:
        self._send(request, status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
