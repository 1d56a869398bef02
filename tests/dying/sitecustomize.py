"""Ends a stage's work, in processes whose PYTHONPATH begins with this directory.

DIES is a JSON list, one entry per attempt: [how, step]. ``how`` is the name of a signal that the work sends to itself as that step
begins, or Outage, MarbleError or RuntimeError, which it raises, or memory, of which it asks for more than any machine has, or S3, which
answers nothing from then on; step 0 is before the work has imported anything. An attempt without an entry is left alone.
"""

import gc
import json
import os
import signal
import sys
from typing import Any


def end(how: str, at: int) -> None:
    if how == "S3":
        return lose_s3()
    if how == "memory":
        import torch

        torch.empty(1 << 50, dtype=torch.uint8)
    if how.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[how])
    raise {"RuntimeError": RuntimeError}.get(how, getattr(types, how, None))(f"It ends at step {at}.")


def lose_s3() -> None:
    """From now on nothing listens where this process's clients send to."""
    from botocore.exceptions import EndpointConnectionError

    from marble_core.storage.s3 import S3

    def refuse(request: Any, **_: Any) -> None:
        raise EndpointConnectionError(endpoint_url=request.url)

    for each in gc.get_objects():
        if isinstance(each, S3):
            each._client.meta.events.register("before-send.s3", refuse)


if "marble_core.stage_process" in sys.orig_argv:
    from marble_core import stages, types

    attempt = int(os.environ.get("MARBLE_ATTEMPT", "1").partition(":")[0])
    plan = json.loads(os.environ["DIES"])
    how, at = plan[attempt - 1] if attempt <= len(plan) else ("", -1)
    if at == 0:
        stages.train = lambda *_: end(how, at)
    elif at > 0:
        from marble_core.training import loop

        step = loop.optimizer_step

        def dies(learner: Any, *arguments: Any) -> Any:
            if learner.step + 1 == at:
                end(how, at)
            return step(learner, *arguments)

        loop.optimizer_step = dies
