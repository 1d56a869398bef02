"""The pipeline in containers on this machine: kfp.local's DockerRunner, and a safe stand-in for what it runs them with.

A container runs as the user who started it (as the images' own where that is root), on a read-only root without privileges,
on the machine's network, where the services answer. It writes below the pipeline's root and below /scratch. What it needs to
know of S3, MLflow and the hub comes from the environment, and stands in no file.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marble_core.config.imports import MAY_RUN
from marble_core.runtime.environment import CA, OVERRIDES, PROGRESS
from marble_core.types import MarbleError
from marble_kubeflow.pipelines.settings import CACHE, SCRATCH, STAGES, Images, Settings

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container
    from kfp import local

LABEL = "marble.pipeline"  # of each container: the directory of the pipeline that it belongs to
GRACE = 25  # seconds in which a stage that is asked to end may write its checkpoint; below local.GRACE
KILLED = 128 + 9  # by the engine, for memory or by hand: the one end after which another attempt makes sense
SHARED_MEMORY = "8g"
USER = 10001  # the images' own
OWN = "/own"  # where the directories of PYTHONPATH are mounted
PASSED = ("AWS_", "MLFLOW_", "HF_", "OPENAI_API_KEY", "OMP_", "no_proxy", "NO_PROXY")
CERTIFICATES = (CA, "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "MLFLOW_TRACKING_SERVER_CERT_PATH")


def settings_of(images: Images) -> Settings:
    """What ends a stage's work is tried again twice and soon, and so is a container that is killed; a refusal is not (run_container)."""
    settings = Settings(images=images)
    again = {stage: pod.model_copy(update={"retries": 2, "pods": 2}) for stage, pod in settings.pods.items()}
    return settings.model_copy(update={"pods": again, "backoff": settings.backoff.model_copy(update={"seconds": 1})})


def find(images: Images) -> None:
    """Pull what is not on this machine. Raises MarbleError where there is no engine, or an image is neither here nor in its registry."""
    from docker.errors import DockerException, ImageNotFound

    with _engine() as client:
        for name in sorted({images.of(stage) for stage in STAGES}):
            try:
                client.images.get(name)
            except ImageNotFound:
                try:
                    client.images.pull(name)
                except DockerException:
                    raise MarbleError(
                        f"The image {name} is not on this machine and cannot be pulled. Run 'make images', "
                        "or name the registry and the tag that have it with --registry and --tag."
                    ) from None


def hand_over(directories: list[Path]) -> None:
    """Make the directories, for the containers to write in."""
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0:
            os.chown(directory, USER, USER)


def runner(directory: Path, events: Path) -> local.DockerRunner:
    """For the pipeline with its files under ``directory``. The stages write their progress to ``events``, and have the
    directory that it lies in as /scratch. They see, read-only, the directories of PYTHONPATH, where classes of the user's own lie."""
    from docker.types import DeviceRequest, Mount
    from kfp import local
    from kfp.local import docker_task_handler

    docker_task_handler.run_docker_container = run_container
    environment = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
    environment |= {PROGRESS: f"{SCRATCH}/{events.name}", "TMPDIR": f"{SCRATCH}/tmp"}
    if handed := os.environ.get(OVERRIDES):
        environment[OVERRIDES] = f"{SCRATCH}/tmp/{Path(handed).name}"
    mounts = [Mount(SCRATCH, str(events.parent), type="bind")]
    models = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    environment["HF_HOME"] = CACHE if models.is_dir() else f"{SCRATCH}/models"
    if models.is_dir():
        mounts.append(Mount(CACHE, str(models), type="bind"))
    for name in CERTIFICATES:
        if os.path.isfile(path := os.environ.get(name, "")):
            environment[name] = f"/certificates/{name}"
            mounts.append(Mount(environment[name], path, type="bind", read_only=True))
    for root in own_roots(os.environ.get("PYTHONPATH", "")):
        mounts.append(Mount(f"{OWN}/{len(mounts)}", str(root), type="bind", read_only=True))
        environment["PYTHONPATH"] = ":".join(filter(None, (environment.get("PYTHONPATH"), mounts[-1]["Target"])))
        environment[MAY_RUN] = "*"  # who starts containers here may run anything
    with _engine() as client:
        has_gpus = "nvidia" in client.info().get("Runtimes", {})
    return local.DockerRunner(
        environment=environment,
        mounts=mounts,
        user=f"{os.getuid()}:{os.getgid()}" if os.getuid() else f"{USER}:{USER}",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        network_mode="host",
        shm_size=SHARED_MEMORY,
        labels={LABEL: str(directory)},
        device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if has_gpus else [],
    )


def own_roots(python_path: str) -> list[Path]:
    """The directories of PYTHONPATH, without those that hold this package or another environment's: the images have their own."""
    roots = [Path(part).resolve() for part in python_path.split(os.pathsep) if part]
    others = ("site-packages", "dist-packages")
    return [root for root in roots if root.is_dir() and root.name not in others and not (root / "marble_core").exists()]


def run_container(client: DockerClient, image: str, command: list[str], volumes: dict[str, Any], **arguments: Any) -> int:
    """One stage, its output to ours. Returns 0, or ``KILLED``, after which kfp.local tries again; raises for any other end.

    kfp 2.17 lets the engine remove a container as it ends, and takes one that is gone for one that succeeded
    (kubeflow/pipelines issue 13332). Here it stays until its exit code is known, and goes whatever happens.
    """
    container = client.containers.create(image, command, volumes=volumes, **arguments)
    try:
        container.start()
        for text in codecs.iterdecode(container.logs(stream=True, follow=True), "utf-8", "replace"):
            print(text, end="", flush=True)
        code = int(container.wait()["StatusCode"])
    finally:
        _end(container)
    if code not in (0, KILLED):
        raise RuntimeError(f"The container of {image} ended with exit code {code}.")
    return code


def remove(directory: Path) -> None:
    """Remove what is left of a pipeline's containers, after its process was killed."""
    with _engine() as client:
        for container in client.containers.list(all=True, filters={"label": f"{LABEL}={directory}"}):
            container.remove(force=True)


def _end(container: Container) -> None:
    """Ask the stage to end if it runs, then remove its container."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        container.reload()
        if container.status == "running":
            # Its first process is kfp's shell, which hands no signal on: hence to all the others.
            container.exec_run(["sh", "-c", "kill -TERM -1"])
            container.wait(timeout=GRACE)
    except (DockerException, RequestException) as error:  # it ended by itself, or takes longer
        print(f"The container {container.short_id} is removed: {error}", file=sys.stderr)
    finally:
        container.remove(force=True)


@contextlib.contextmanager
def _engine() -> Iterator[DockerClient]:
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env()
    except DockerException:
        raise MarbleError(
            "The container engine does not answer: start it, set DOCKER_HOST to where it listens, or leave --containers out."
        ) from None
    with contextlib.closing(client):
        yield client
