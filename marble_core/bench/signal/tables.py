"""The tables of a bank: on the console, and as numbers for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from marble_core.bench.signal.agreement import Agreement
from marble_core.bench.signal.products import Estimate, Products
from marble_core.bench.signal.rules import MARBLE
from marble_core.runtime.console_table import print_blocks

if TYPE_CHECKING:
    from rich.console import Console

ENERGIES = {
    "signal": "|E g|^2",
    "between_prompts": "between prompts",
    "between_images": "between images",
    "t_eps": "(t, eps)",
    "consistency": "consistency",
    "cosine": "cos(step, truth)",
}
METERS = {"halves_mean": "by halves, mean", "halves_sd": "by halves, sd", "time_sd": "step against EMA, sd"}


def numbers(values: np.ndarray) -> Any:
    """Lists for JSON, with four significant digits and null for NaN."""
    if values.ndim:
        return [numbers(value) for value in values]
    return float(f"{float(values):.4g}") if np.isfinite(values) else None


def both(estimate: Estimate) -> dict[str, Any]:
    return {"value": numbers(estimate.value), "se": numbers(estimate.se)}


def show_energies(bank: Products, found: Mapping[str, Estimate], console: Console) -> None:
    title = "One step: the signal's energy, and noise by where it comes from, in units of the signal (se)"
    rows = [
        (name, *(_with_se(found[key], k, ".2e" if key == "signal" else ".2f") for key in ENERGIES))
        for k, name in enumerate(bank.names)
    ]
    print_blocks(console, ("reward", *ENERGIES.values()), rows, title)


def show_cosines(bank: Products, true: Estimate, of_a_step: Estimate, console: Console) -> None:
    for title, found in (("True cosines between rewards (se)", true), ("The same in one step's own Gram matrix", of_a_step)):
        rows = [
            (name, *("" if j >= k else _with_se(found, (k, j)) for j in range(bank.K))) for k, name in enumerate(bank.names)
        ]
        print_blocks(console, ("reward", *bank.names), rows, title)


def show_agreement(bank: Products, found: Mapping[str, Agreement], balanced: Sequence[int], console: Console) -> None:
    said = ", ".join(bank.names[k] for k in balanced)
    title = f"Balanced: {said}. Cosine of the update with each reward's true gradient (se), and its mean's gain over min-norm"
    gains = {name: "" if name == MARBLE else _with_se(one.gain, bank.K, "+.2f") for name, one in found.items()}
    rows = [(name, *(_with_se(one.cosine, k) for k in range(bank.K + 1)), gains[name]) for name, one in found.items()]
    print_blocks(console, ("rule", *bank.names, "mean", "gain"), rows, title)
    headings = ("rule", *(bank.names[k] for k in balanced))
    weighed = {name: one for name, one in found.items() if np.isfinite(one.alpha.value).any()}
    rows = [(name, *(_with_se(one.alpha, k) for k in balanced)) for name, one in weighed.items()]
    print_blocks(console, headings, rows, "Shares alpha of the unit gradients in the update (se)")
    rows = [(name, *(_cell(one.alpha_of_truth[k]) for k in balanced)) for name, one in weighed.items()]
    print_blocks(console, headings, rows, "The same shares, had the rule seen the true Gram matrix")


def show_meters(bank: Products, found: Mapping[str, Estimate], console: Console) -> None:
    rows = [(name, *(_with_se(found[key], k) for key in METERS)) for k, name in enumerate(bank.names)]
    title = "Estimates of the signal's energy from one step, relative to the truth (se)"
    print_blocks(console, ("reward", *METERS.values()), rows, title)


def _with_se(estimate: Estimate, index: Any, style: str = ".2f") -> str:
    value, se = estimate.value[index], estimate.se[index]
    if not np.isfinite(value):
        return "-"
    return _cell(value, style) + (f" ({_cell(se, style.lstrip('+'))})" if np.isfinite(se) else "")


def _cell(value: float, style: str = ".2f") -> str:
    return format(value, style) if np.isfinite(value) else "-"
