"""What a scorer's ``score`` returned: as numbers, or in words. No torch at import."""

from __future__ import annotations

from typing import Any

import numpy as np

from marble_core.types import NoValue

_REAL = "biuf"  # numpy's kinds: bool, integers, floats


def as_numbers(returned: Any) -> np.ndarray | None:
    """float64 of an array, a tensor (of any precision, on any device, requiring grad or not), a number, or a list or tuple of these;
    None for what is not real numbers, or is ragged. In a list, or an array of objects, None and NoValue are NaN, and so is what a
    masked array masks."""
    if isinstance(returned, np.ma.MaskedArray) and returned.dtype.kind in _REAL:
        return np.where(np.ma.getmaskarray(returned), np.nan, returned.data.astype(np.float64))
    if isinstance(returned, np.ndarray) and returned.dtype == object and returned.ndim == 1:
        returned = list(returned)
    if isinstance(returned, list) and any(_is_none(part) for part in returned):
        parts = [as_numbers(part) for part in returned if not _is_none(part)]
        shape = () if not parts or parts[0] is None else parts[0].shape
        returned = [np.full(shape, np.nan) if _is_none(part) else part for part in returned]
    if hasattr(returned, "detach"):
        tensor = returned.detach()
        return None if tensor.is_complex() else tensor.cpu().double().numpy()  # numpy has no bfloat16
    if isinstance(returned, list | tuple):
        parts = [as_numbers(part) for part in returned]
        shapes = {None if part is None else part.shape for part in parts}
        if not parts or len(shapes) > 1 or None in shapes:
            return None if parts else np.zeros(0)
        return np.stack([part for part in parts if part is not None])
    if isinstance(returned, bool | int | float | np.generic) or hasattr(returned, "__array__"):
        values = np.asarray(returned)
        return values.astype(np.float64) if values.dtype.kind in _REAL else None
    return None


def reasons(returned: Any) -> dict[int, str]:
    """Why an image has no value, by its index, where the scorer says so."""
    return {i: part.why for i, part in enumerate(returned) if isinstance(part, NoValue)} if isinstance(returned, list) else {}


def _is_none(part: object) -> bool:
    return part is None or isinstance(part, NoValue)


def described(returned: Any) -> str:
    """Its type, and of what it is made."""
    name = type(returned).__name__
    if returned is None:
        return "None"
    if hasattr(returned, "dtype") and hasattr(returned, "shape"):
        return f"{_article(name)} of {returned.dtype} with shape {tuple(returned.shape)}"
    if isinstance(returned, list | tuple):
        kinds = list(dict.fromkeys(type(part).__name__ for part in returned))
        return f"{_article(name)} of {' and '.join(kinds[:3])}" if kinds else f"an empty {name}"
    return _article(name)


def _article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
