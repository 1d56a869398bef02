"""What may open a door, taken out of what people are shown: passwords and signatures in addresses, settings that are secrets."""

from __future__ import annotations

import json
import re
from typing import Any

from marble_core.types import without_secrets

HIDDEN = "(hidden)"
_SECRET = re.compile(r"(^|[._-])(api_?key|key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)


def settings_without_secrets(value: Any, name: str = "") -> Any:
    """The same for settings: dicts, lists and texts. What is called like a secret (``options.api_key``) is hidden whole."""
    if isinstance(value, dict):
        return {key: settings_without_secrets(each, str(key)) for key, each in value.items()}
    if value not in (None, "") and not isinstance(value, bool) and _SECRET.search(name):
        return HIDDEN
    if isinstance(value, list):
        return [settings_without_secrets(each) for each in value]
    return without_secrets(value) if isinstance(value, str) else value


def json_without_secrets(text: str) -> str:
    """The same for a JSON object."""
    return json.dumps(settings_without_secrets(json.loads(text)), indent=2, ensure_ascii=False)
