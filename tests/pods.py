"""Runs the pods of rendered manifests without a cluster: the real programs, with the containers' very command, arguments and
environment, in Linux namespaces.

    with Cluster(manifests, namespace="ml", secrets={"marble-s3": {...}}, root=tmp_path) as cluster:
        cluster.start("Deployment", "marble-mlflow")

In there each Service's names resolve to an address of its own, which is not loopback; the root is read-only, the user is the
pod's, without capabilities; the volumes are empty or hold what their ConfigMap or Secret says. Nothing of it is left behind. Needs root; the programs are those on PATH.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from paths import ROOT

PATH = ":".join([str(Path(sys.executable).parent), *map(str, Path("/usr/lib/postgresql").glob("*/bin")), os.environ["PATH"]])
PROGRAMS = sorted({str(ROOT), sys.prefix, sys.base_prefix})
Manifest = dict[str, Any]


class Cluster:
    """One network and one process namespace; ``secrets`` maps the names of Secrets to their data."""

    def __init__(
        self, manifests: Sequence[Manifest], namespace: str, secrets: Mapping[str, Mapping[str, str]], root: Path
    ) -> None:
        self.install(manifests)
        self._namespace, self._secrets, self._root = namespace, secrets, root
        services = [name for kind, name in self._manifests if kind == "Service"]
        self.addresses = {name: f"10.96.0.{number}" for number, name in enumerate(services, 1)}
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        hosts = self._root / "hosts"
        suffixes = ("", f".{self._namespace}", f".{self._namespace}.svc", f".{self._namespace}.svc.cluster.local")
        lines = [" ".join([ip, *(name + suffix for suffix in suffixes)]) for name, ip in self.addresses.items()]
        hosts.write_text("\n".join(["127.0.0.1 localhost", *lines]))
        addresses = "".join(f"ip address add {ip}/32 dev lo && " for ip in self.addresses.values())
        # The images' users: Postgres' has an entry for its own, MLflow's has none for 1000.
        passwd = self._root / "passwd"
        passwd.write_text("root:x:0:0::/root:/bin/sh\npostgres:x:999:999::/var/lib/postgresql:/bin/sh\n")
        mounts = f"mount --bind {hosts} /etc/hosts && mount --bind {passwd} /etc/passwd"
        script = f"ip link set lo up && {addresses}{mounts} && echo ready && exec sleep infinity"
        namespaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *namespaces, "sh", "-c", script], stdout=subprocess.PIPE
        )
        assert self._holder.stdout and self._holder.stdout.readline() == b"ready\n", (
            "these tests need root, iproute2 and util-linux"
        )
        init = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()[0]
        self._enter = ["nsenter", "--target", init, "--net", "--mount", "--pid"]
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()  # and with it everything in the namespaces
        for process in [self._holder, *self._running]:
            process.wait()

    def install(self, manifests: Sequence[Manifest]) -> None:
        """From now on these are the ones; what runs goes on."""
        self._manifests = {(each["kind"], each["metadata"]["name"]): each for each in manifests}

    def pod(self, kind: str, name: str) -> Manifest:
        """The PodSpec of a workload."""
        manifest = self._manifests[kind, name]
        return manifest["spec"] if kind == "Pod" else manifest["spec"]["template"]["spec"]

    def environment(self, container: Manifest) -> dict[str, str]:
        """What Kubernetes would make of the container's `env`."""
        env: dict[str, str] = {}
        for entry in container.get("env", []):
            if "valueFrom" in entry:
                reference = entry["valueFrom"]["secretKeyRef"]
                env[entry["name"]] = self._secrets[reference["name"]][reference["key"]]
            else:
                env[entry["name"]] = _expand(entry["value"], env)
        return env

    def start(
        self, kind: str, name: str, without: Sequence[str] = (), entrypoint: Sequence[str] = (), user: str = "root"
    ) -> None:
        """Starts all containers of a workload, but for the variables ``without``, and waits until their probes answer.

        ``entrypoint`` is that of the image, where the container has no command.
        """
        pod = self.pod(kind, name)
        started = []
        for container in pod["containers"]:
            command = self._command(pod, container, without, entrypoint)
            with (self._root / f"{name}-{container['name']}.log").open("wb") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/")
            self._running.append(process)
            started.append((container, process))
        for container, process in started:
            if probe := container.get("startupProbe"):
                self._wait_for(container, probe, process)

    def run(self, kind: str, name: str, without: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Runs the one container of a Job or a test pod to its end."""
        pod = self.pod(kind, name)
        (container,) = pod["containers"]
        command = self._command(pod, container, without, ())
        return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd="/", check=False)

    def background(self, *command: str) -> None:
        """Something of the test's own, in the same network."""
        self._running.append(subprocess.Popen([*self._enter, *command], stdin=subprocess.DEVNULL))

    def fetch(self, url: str, authorization: str = "", seconds: float = 0.0) -> tuple[int, str]:
        """Status and text of a GET from within, tried again for ``seconds``; 0 where nobody listens."""
        script = (
            "import sys, time, urllib.request, urllib.error\n"
            "request = urllib.request.Request(sys.argv[1], headers={'Authorization': sys.argv[2]} if sys.argv[2] else {})\n"
            "deadline = time.monotonic() + float(sys.argv[3])\n"
            "while True:\n"
            "    try:\n        answer = urllib.request.urlopen(request, timeout=60)\n"
            "    except urllib.error.HTTPError as error:\n        answer = error\n"
            "    except OSError:\n        answer = None\n"
            "    if answer is not None or time.monotonic() > deadline:\n        break\n"
            "    time.sleep(0.2)\n"
            "print(answer.status if answer else 0, answer.read().decode() if answer else '')\n"
        )
        done = subprocess.run(
            [*self._enter, sys.executable, "-S", "-c", script, url, authorization, str(seconds)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        status, _, text = done.stdout.partition(" ")
        return int(status), text.strip()

    def run_python(self, script: str, *arguments: str) -> str:
        """What a script prints that runs in there."""
        command = [*self._enter, sys.executable, "-S", "-c", script, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    def _wait_for(self, container: Manifest, probe: Manifest, process: subprocess.Popen[bytes], seconds: float = 240.0) -> None:
        if "exec" in probe:
            deadline = time.monotonic() + seconds
            while subprocess.run(
                [*self._enter, "env", f"PATH={PATH}", *probe["exec"]["command"]], check=False, capture_output=True
            ).returncode:
                assert time.monotonic() < deadline and process.poll() is None, f"{container['name']}: see {self._root}"
                time.sleep(0.1)
            return
        port = next(each["containerPort"] for each in container["ports"] if each["name"] == probe["httpGet"]["port"])
        status, text = self.fetch(f"http://127.0.0.1:{port}{probe['httpGet']['path']}", seconds=seconds)
        assert status == 200, f"{container['name']}: {status} {text}, see {self._root}"

    def _command(self, pod: Manifest, container: Manifest, without: Sequence[str], entrypoint: Sequence[str]) -> list[str]:
        env = self.environment(container)
        command = [_expand(word, env) for word in [*container.get("command", entrypoint), *container.get("args", [])]]
        env = {"PATH": PATH, "PYTHONPATH": str(ROOT), **{key: value for key, value in env.items() if key not in without}}
        plan = {"command": command, "env": env, "mounts": self._mounts(pod, container), "programs": PROGRAMS}
        plan |= {"user": pod["securityContext"]["runAsUser"], "group": pod["securityContext"]["runAsGroup"]}
        return [*self._enter, "unshare", "--mount", sys.executable, "-S", __file__, json.dumps(plan)]

    def _mounts(self, pod: Manifest, container: Manifest) -> dict[str, dict[str, str]]:
        """The files in each mounted directory."""
        sources = {volume["name"]: volume for volume in pod.get("volumes", [])}
        mounts = {}
        for mount in container.get("volumeMounts", []):
            volume = sources.get(mount["name"], {})
            files: Mapping[str, str] = {}
            if "configMap" in volume:
                files = self._manifests["ConfigMap", volume["configMap"]["name"]]["data"]
            if "secret" in volume:
                files = self._secrets[volume["secret"]["secretName"]]
            if "projected" in volume:
                files = self._secrets["serviceAccountToken"]
            mounts[mount["mountPath"]] = dict(files)
        return mounts


def _expand(text: str, env: Mapping[str, str]) -> str:
    """$(NAME), as Kubernetes has it."""
    return re.sub(r"\$\((\w+)\)", lambda match: env.get(match[1], match[0]), text)


def _contain(plan: Manifest) -> None:
    """Becomes the container: its mounts, a read-only root, its user without capabilities, then its program."""
    made: list[Path] = []
    # A home directory, or one that mkdtemp made, lets no other user in, which an image has no equal of.
    programs = [each for path in map(Path, plan["programs"]) for each in (path.iterdir() if _is_closed(path) else [path])]
    closed = [each for path in programs for each in reversed(path.parents) if _is_closed(each)]
    wanted = [each if each.is_dir() else next(up for up in each.parents if up.is_dir()) for each in map(Path, plan["mounts"])]
    for each in [*closed, *wanted]:
        if not any(each.is_relative_to(other) for other in made):
            _mount_empty(each, programs)
            made.append(each)
    for path, files in plan["mounts"].items():
        Path(path).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (Path(path) / name).write_text(text)
        os.chown(path, plan["user"], plan["group"])
    subprocess.run(["mount", "-o", "remount,bind,ro", "/"], check=True)
    identity = [
        f"--reuid={plan['user']}",
        f"--regid={plan['group']}",
        "--clear-groups",
        "--bounding-set=-all",
        "--no-new-privs",
    ]
    os.execvpe("setpriv", ["setpriv", *identity, "--inh-caps=-all", *plan["command"]], plan["env"])


def _is_closed(path: Path) -> bool:
    return not path.stat().st_mode & stat.S_IXOTH


def _mount_empty(there: Path, programs: Sequence[Path]) -> None:
    """A new, empty directory in the place of another, but for the installed ``programs``, which may lie in there."""
    handles = {path: os.open(path, os.O_PATH) for path in programs if path.is_relative_to(there) and path.is_dir()}
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(there)], check=True)
    for path, handle in handles.items():
        path.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--no-canonicalize", "--bind", f"/proc/{os.getpid()}/fd/{handle}", str(path)], check=True)
        os.close(handle)


if __name__ == "__main__":
    _contain(json.loads(sys.argv[1]))
