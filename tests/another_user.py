"""What another user of the machine can do: `another_user.py DIRECTORY` becomes nobody (where this is root; else it has no key, and
leaves out files and sockets, which are its own), finds the servers that
are started in the directory by what everybody sees of processes, tries their ports, sockets and files, and prints as JSON what let
it in. It has no key, and looks for none but where everybody may look.
"""

import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

NOBODY = 65534


def servers(directory: str) -> dict[str, list[str]]:
    """Command lines of the processes that work in the directory; a stranger reads the lines of all, and needs no directory."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(place / "cwd").startswith(directory):
                found[place.name] = (place / "cmdline").read_bytes().decode().strip("\0").split("\0")
        except OSError:
            continue
    return found


def statuses(port: int, method: str, path: str) -> list[int]:
    """Of the request in plain HTTP and in HTTPS without a certificate; 0 where the connection is refused."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    found = []
    for scheme in ("http", "https"):
        request = urllib.request.Request(f"{scheme}://127.0.0.1:{port}{path}", b"{}" if method in ("PUT", "POST") else None)
        request.method = method
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        try:
            found.append(opener.open(request, timeout=10).status)
        except urllib.error.HTTPError as error:
            found.append(error.code)
        except (OSError, http.client.HTTPException):  # a TLS alert is no HTTP, nor is gRPC
            found.append(0)
    return found


def main(directory: str, weed: str) -> None:
    lines = servers(directory)
    binary = os.open(weed, os.O_RDONLY)
    statuses(9, "GET", "/")  # imports what it needs as long as Python's own files can be read
    another = os.getuid() == 0
    if another:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    entries = []
    ports = sorted({int(n) for line in lines.values() for n in re.findall(r"port(?:\.grpc)?[= \0](\d{4,})", "\0".join(line))})
    paths = {
        "GET": (
            "/",
            "/buckets/?pretty=y",
            "/dir/status",
            "/marble",
            "/api/2.0/mlflow/experiments/search?max_results=5",
            "/health",
        ),
        "PUT": ("/buckets/marble/x", "/marble/x"),
        "POST": ("/buckets/marble/y", "/dir/assign", "/api/2.0/mlflow/registered-models/create"),
        "DELETE": ("/buckets/marble?recursive=true", "/marble"),
    }
    for port in ports:
        for method, places in paths.items():
            for path in places:
                if any(200 <= status < 400 for status in statuses(port, method, path)):
                    entries.append(f"{method} {path} at {port}")
    masters = [flag.split("=")[1] for line in lines.values() for flag in line if flag.startswith("-master.port=")]
    for master in masters:
        grpc = next(flag.split("=")[1] for line in lines.values() for flag in line if flag.startswith("-master.port.grpc="))
        command = [f"/proc/self/fd/{binary}", "shell", f"-master=127.0.0.1:{master}.{grpc}"]
        try:  # turned away, it tries again without end
            said = subprocess.run(
                command, input=b"s3.configure\nfs.ls /buckets\n", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                timeout=5, check=False, pass_fds=(binary,), cwd="/",
            ).stdout  # fmt: skip
        except subprocess.TimeoutExpired as error:
            said = error.stdout or b""
        if re.search(rb"secretKey|^marble$", said, re.MULTILINE):
            entries.append("the shell of SeaweedFS")
    if another:  # files and sockets are open to who started the servers
        for path in Path("/tmp").glob("seaweedfs-*.sock"):
            if int(re.findall(r"\d+", path.name)[-1]) in ports:
                try:
                    with socket.socket(socket.AF_UNIX) as client:
                        client.connect(str(path))
                    entries.append(str(path))
                except OSError:
                    pass
        for path in (
            Path(directory),
            *(Path(directory) / name for name in ("s3", "mlflow", "s3/keys.json", "mlflow/password")),
        ):
            if os.access(path, os.R_OK):
                entries.append(str(path))
    print(json.dumps({"servers": len(lines), "ports": len(ports), "lines": lines, "let in": entries}))


if __name__ == "__main__":
    main(*sys.argv[1:])
