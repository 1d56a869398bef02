"""Model, follower and uvicorn in one process."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from marble_core.config.schema import RunConfig
from marble_core.serving.app import make_app
from marble_core.serving.follower import Follower
from marble_core.serving.served import Served
from marble_core.types import MarbleError


def run(config: RunConfig, host: str, port: int, every: float, say: Callable[[str], None]) -> None:
    """Serves until it is interrupted. Raises MarbleError where the port cannot be had or the model cannot be loaded."""
    with _listening(host, port) as listener, Follower(Served(config), every, say) as follower:
        say(f"http://{host}:{listener.getsockname()[1]}/")
        uvicorn.Server(uvicorn.Config(make_app(follower), log_level="warning")).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    """Before the model is loaded: a port that is taken is found in a second, not after minutes."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise MarbleError(f"The address {host}:{port} cannot be listened at ({error.strerror}); give another --port.") from None
