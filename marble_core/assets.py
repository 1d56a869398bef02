"""Where a model, a reward checkpoint or a head lies: demo:// names, local paths, hub ids. No torch."""

from __future__ import annotations

import re
from pathlib import Path

from marble_core.types import MarbleError

DEMO = "demo://"
WEIGHTS = Path(__file__).parent / "demo" / "weights"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def resolve(uri: str) -> Path | str:
    """The directory or file that ``uri`` names, or ``uri`` itself where it is a hub id (``organisation/name``).

    ``demo://sd3`` and ``demo://rewards/clip`` lie inside this package. Raises MarbleError for a demo name or a local path
    that is not there.
    """
    if uri.startswith(DEMO):
        path = WEIGHTS / uri.removeprefix(DEMO)
        if not path.exists():
            known = sorted(p.relative_to(WEIGHTS).as_posix() for p in [*WEIGHTS.glob("*"), *WEIGHTS.glob("rewards/*")])
            known = [DEMO + name for name in known if name != "rewards"]
            raise MarbleError(f"There is no {uri!r}; the demo has {', '.join(known) or 'no weights yet'}.")
        return path
    path = Path(uri).expanduser()
    if path.exists():
        return path
    if _HUB_ID.fullmatch(uri):
        return uri
    raise MarbleError(f"The path {uri!r} does not exist; give a directory, a file or a hub id such as 'organisation/name'.")
