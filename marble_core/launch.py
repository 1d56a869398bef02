"""Training on several processes of one machine. The train stage starts them by torchrun; what it starts can be started by hand:

torchrun --nproc_per_node 8 -m marble_core.launch PREPARED OUT
accelerate launch --num_processes 8 -m marble_core.launch PREPARED OUT
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from marble_core.config import RunConfig
from marble_core.types import MarbleError

ERRORS = "train_errors.jsonl"  # beside OUT: the sentence of each process that stopped, the first one's first


def processes_wanted(config: RunConfig) -> int:
    """``train.processes``, where 0 means one a GPU; 1 inside a process that was itself started so."""
    if "LOCAL_RANK" in os.environ:
        return 1
    if config.train.processes:
        return config.train.processes
    import torch

    return max(1, torch.cuda.device_count())


def train_on(count: int, prepared: Path, out: Path) -> None:
    """Train on ``count`` processes, which end with this one's SIGTERM as a single process does: after a checkpoint.

    Raises MarbleError with the sentence of the process that stopped first, and RuntimeError where none said any.
    """
    errors = out.parent / ERRORS
    errors.unlink(missing_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    threads = str(max(1, (os.cpu_count() or 1) // count))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    process = subprocess.Popen([*command, "-m", "marble_core.launch", str(prepared), str(out)], env=environment)
    with _sigterm_goes_to(process):
        code = process.wait()
    if code == 0:
        return
    if errors.exists():
        raise MarbleError(json.loads(errors.read_text().splitlines()[0])["error"])
    raise RuntimeError(f"training on {count} processes ended with exit code {code}")


@contextmanager
def _sigterm_goes_to(process: subprocess.Popen[bytes]) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        yield
    finally:
        process.terminate()  # it waits for its processes, and kills them after half a minute
        process.wait()
        signal.signal(signal.SIGTERM, before)


def main(prepared: Path, out: Path) -> None:
    """One of the processes."""
    from marble_core import distributed
    from marble_core.prompts import read_prompts
    from marble_core.stages import read_prepared
    from marble_core.train import run_training

    config, run_id = read_prepared(prepared)
    try:
        with distributed.processes():
            run_training(config, run_id, read_prompts(prepared / "train.jsonl"), out)
    except MarbleError as error:
        with (out.parent / ERRORS).open("a") as file:
            file.write(json.dumps({"time": time.time(), "rank": os.environ.get("RANK"), "error": str(error)}) + "\n")
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
