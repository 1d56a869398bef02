"""Images reduced until all of them together fit into a page."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_PROBES = 24  # images by which the size is chosen, before all are encoded


class Thumbnails:
    """Data URIs by file: WebP, of the largest of ``sides`` (pixels) at which all are no longer than ``budget``.

    ``side`` is what the largest of them has, which is less where the images themselves are smaller.
    """

    def __init__(self, paths: Sequence[Path], sides: Sequence[int], budget: int) -> None:
        distinct = list(dict.fromkeys(paths))
        probes = distinct[:: max(1, len(distinct) // _PROBES)]
        self.side, self.uris = 0, dict[Path, str]()
        for side in sides:
            if side != sides[-1] and sum(len(_encoded(path, side)[0]) for path in probes) * len(distinct) > budget * len(
                probes
            ):
                continue
            with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # reading and writing images leave Python's lock
                found = dict(zip(distinct, pool.map(lambda path, side=side: _encoded(path, side), distinct), strict=True))
            self.uris = {path: uri for path, (uri, _) in found.items()}
            self.side = max((own for _, own in found.values()), default=0)
            if sum(map(len, self.uris.values())) <= budget:
                break

    def larger_than(self, other: Thumbnails) -> bool:
        return self.side > other.side


def _encoded(path: Path, side: int) -> tuple[str, int]:
    """(data URI, its pixels a side)."""
    from PIL import Image

    with Image.open(path) as image:
        image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "WEBP", quality=75, method=1)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}", max(image.size)
