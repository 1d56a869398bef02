"""MLflow's server behind a password: the application that the server process of a laptop run serves.

MLflow's own basic-auth keeps users in a database and hashes a password anew for each request; here there is one user, whose
password is compared. The server finds this by MLflow's plug-in group ``mlflow.app``, see mlflow_server.py.
"""

from __future__ import annotations

import base64
import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from mlflow.server.fastapi_app import app as mlflow_app

USER = "marble"
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Locked:
    """An ASGI application that answers 401 to every request without ``authorization``, whatever it asks for."""

    def __init__(self, inner: Callable[[Scope, Receive, Send], Awaitable[None]], password: str) -> None:
        self._inner = inner
        self._wanted = b"Basic " + base64.b64encode(f"{USER}:{password}".encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if scope["type"] != "http" or not hmac.compare_digest(given, self._wanted):
                await _refuse(scope, send)
                return
        await self._inner(scope, receive, send)


async def _refuse(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"www-authenticate", b'Basic realm="MLflow of this marble"'), (b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": b"This MLflow belongs to a marble command, and asks for its password."})


app = Locked(mlflow_app, os.environ["MLFLOW_TRACKING_PASSWORD"])
