"""What the command line said to an order for a cluster."""

import json
from collections.abc import Callable
from typing import Any

TOKEN = "secret-token-of-the-test"


class Said(str):
    code: int
    error: str

    @property
    def json(self) -> Any:
        return json.loads(self)


Marble = Callable[..., Said]
