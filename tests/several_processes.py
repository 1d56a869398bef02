"""A function in several processes that are a group, as torchrun makes one."""

import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

import torch

from paths import TESTS


def launch(count, work, *arguments, seconds=300, hopeless=None):
    """``work(*arguments)`` in ``count`` processes under the environment that torchrun gives them. Returns them, ended;
    the ``hopeless`` one is not waited for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = [str(TESTS), str(Path(sys.modules[work.__module__].__file__).parent)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*own, os.environ["PYTHONPATH"]])
    context = multiprocessing.get_context("forkserver")  # imports torch once
    context.set_forkserver_preload([work.__module__])
    running = [context.Process(target=_begin, args=(r, count, port, work, arguments), daemon=True) for r in range(count)]
    for process in running:
        process.start()
    deadline = time.monotonic() + seconds
    try:
        for process in (p for r, p in enumerate(running) if r != hopeless):
            process.join(max(0, deadline - time.monotonic()))
    finally:
        for process in running:
            process.kill()
    return running


def _begin(rank, count, port, work, arguments):
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {n: str(v) for n, v in names.items()} | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    work(*arguments)
