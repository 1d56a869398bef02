"""Training on several processes. The train stage starts them by torchrun; what it starts can be started by hand:

torchrun --nproc_per_node 8 -m marble_core.training.launch PREPARED OUT
accelerate launch --num_processes 8 -m marble_core.training.launch PREPARED OUT

On several machines (marble_core.training.trainjob, or torchrun by hand) PREPARED and OUT are s3:// prefixes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from marble_core.runtime import cpus, out_of_memory
from marble_core.runtime.child_process import ChildProcess, end_with_the_parent, keeping_its_id, signal_name
from marble_core.runtime.environment import GPUS_SINCE, KFP_RUN
from marble_core.runtime.scratch import scratch_directory

# What takes long to import waits until a process ends with its parent.
from marble_core.training.process_errors import ERRORS, first_error_here, in_s3, recorded
from marble_core.types import MarbleError, Outage

if TYPE_CHECKING:
    from marble_core.config.schema import RunConfig
    from marble_core.training.heartbeat import Listener

ENDED = ".first-end"  # the file in which torchrun leaves how the first of its processes ended
GRACE = 12.0  # seconds: a checkpoint, between the end of the stage and that of its processes


def processes_wanted(config: RunConfig) -> int:
    """``train.processes``, where 0 means one a GPU; 1 inside a process that was itself started so.

    A configuration for CPUs asks for processes that share cores: on a machine with GPUs there are at most as many as GPUs.
    """
    if "LOCAL_RANK" in os.environ:
        return 1
    gpus = _gpus()
    wanted = config.train.processes or max(1, gpus)
    return min(wanted, gpus) if gpus and not config.hardware.gpus else wanted


def evaluation_processes(config: RunConfig) -> int:
    """One per GPU of the pod; on a machine that others use too as many as training takes. On CPUs one, which has all cores."""
    seen = _gpus()
    return max(1, seen if os.environ.get(KFP_RUN) else min(seen, processes_wanted(config)))


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def newest_checkpoint(prepared: Path) -> str:
    """Of the run, on S3; empty where there is none, or S3 is away."""
    from marble_core.checkpoints.run_checkpoints import RunCheckpoints
    from marble_core.config.stage_files import read_prepared
    from marble_core.storage.s3 import S3

    config, run_id = read_prepared(prepared)
    with suppress(MarbleError):
        return RunCheckpoints(S3(config.storage.bucket), run_id).latest() or ""
    return ""


def train_on(count: int, prepared: Path, out: Path) -> None:
    """Train on ``count`` processes, which end with this one's SIGTERM as a single process does: after a checkpoint."""
    run_on(count, "marble_core.training.launch", [prepared, out], out, "training", ": it goes on from its last checkpoint")


def run_on(count: int, module: str, arguments: Sequence[Path], out: Path, what: str, goes_on: str) -> None:
    """``python -m module`` in ``count`` processes under torchrun. This one's SIGTERM goes to them, and they end with this one, whatever
    ends it. ``what`` they do, and how it ``goes_on`` when it is started again, are for sentences.

    Raises MarbleError with the sentence of the process that stopped first, or where one was killed; RuntimeError where a bug, whose
    traceback is in the log, ended one.
    """
    errors, ended, killed = out.parent / ERRORS, out.parent / ENDED, out_of_memory.kills()
    for left in (errors, ended):
        left.unlink(missing_ok=True)
    command = [sys.executable, "-m", "marble_core.training.torchrun", str(ended), "--standalone", f"--nproc-per-node={count}"]
    # Idle OpenMP threads must sleep, not spin, where processes share the cores; there may be more of them than cores.
    environment = {"OMP_NUM_THREADS": str(max(1, cpus.usable() // count)), "OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    command += ["-m", module, *map(str, arguments)]
    child = ChildProcess(keeping_its_id(command), None, environment, Path.cwd(), grace=GRACE)
    with _sigterm_goes_to(child):
        code = child.wait()
    if code == 0:
        return
    ones = _exit_code_in(ended)
    was_killed = min(code, ones or 0) < 0
    error = first_error_here(out)
    if error and not (was_killed and isinstance(error, Outage)):  # which says only that another one has ended
        raise error
    if errors.exists() and not was_killed:
        raise RuntimeError(f"{what} on {count} processes ended with exit code {code}")
    raise Outage(
        " ".join(
            filter(
                None,
                [f"{what.capitalize()} on {count} processes ended because {_why(code, ones)}.", out_of_memory.said(killed)],
            )
        )
        + f" See the log, and start the run again{goes_on}."
    )


def _exit_code_in(file: Path) -> int | None:
    """What torchrun has left, see torchrun.py."""
    if not file.exists():
        return None
    code = int(file.read_text(encoding="ascii"))
    file.unlink()
    return code


def _why(torchruns: int, ones: int | None) -> str:
    if torchruns < 0:
        return f"something killed torchrun, by {signal_name(torchruns)}"
    if ones is None:
        return "something killed one of them"
    return f"something killed one of them, by {signal_name(ones)}" if ones < 0 else f"one of them ended with exit code {ones}"


@contextmanager
def _sigterm_goes_to(child: ChildProcess) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: child.ask_to_end())  # it waits for its processes, half a minute at most
    try:
        yield
    finally:
        child.terminate()
        child.wait()
        signal.signal(signal.SIGTERM, before)


def main(prepared: str, out: str) -> None:
    """One of the processes. ``prepared`` and ``out`` are directories, or s3:// prefixes, as several nodes have them."""
    os.environ.setdefault(GPUS_SINCE, str(time.time()))  # of a TrainJob's pod, which has waited in no queue yet
    end_with_the_parent()

    from marble_core.config.stage_files import TRAIN_PROMPTS, WATCHED_PROMPTS, read_prepared
    from marble_core.prompts import read_prompts, read_watched
    from marble_core.runtime import distributed
    from marble_core.runtime.certificates import trust_private_roots
    from marble_core.runtime.mlflow_server import settle
    from marble_core.runtime.noise import quieten
    from marble_core.runtime.sigterm import Terminated
    from marble_core.training.loop import run_training

    quieten()
    settle()
    trust_private_roots()

    listener = _listener(prepared)
    if listener and listener.ended_before():
        return
    with recorded(out):
        try:
            with _here(prepared, out) as (source, adapter):
                config, run_id = read_prepared(source)
                with distributed.processes():
                    watched = read_watched(source / WATCHED_PROMPTS)
                    run_training(config, run_id, read_prompts(source / TRAIN_PROMPTS), adapter, watched)
        except (Terminated, MarbleError):
            if not (listener and listener.silent.is_set()):
                raise
            os._exit(0)  # the state is saved; a process that has ended is not waited for


def _listener(prepared: str) -> Listener | None:
    """Of a process of a TrainJob, which listens from now on; None on a machine of one's own."""
    if not prepared.startswith("s3://"):
        return None
    from marble_core.training.heartbeat import Listener

    s3, prefix = in_s3(prepared)
    listener = Listener(s3, prefix.rpartition("/")[0])
    listener.listen(first=os.environ["RANK"] == "0")
    return listener


@contextmanager
def _here(prepared: str, out: str) -> Iterator[tuple[Path, Path]]:
    """Both as directories of this machine; of those in S3 the adapter is uploaded at the end, by the first process."""
    if not prepared.startswith("s3://"):
        yield Path(prepared), Path(out)
        return
    with scratch_directory() as scratch:
        source, adapter = scratch / "prepared", scratch / "adapter"
        s3, prefix = in_s3(prepared)
        s3.download_dir(prefix, source)
        yield source, adapter
        if os.environ["RANK"] == "0":
            s3, prefix = in_s3(out)
            s3.upload_dir(adapter, prefix)


if __name__ == "__main__":
    main(*sys.argv[1:])
