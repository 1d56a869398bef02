"""``marble bench signal``: make or go on with a bank, and ask it everything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from marble_core.bench.signal import bank as banks
from marble_core.bench.signal import batches, tables
from marble_core.bench.signal.agreement import agreement
from marble_core.bench.signal.batches import Design
from marble_core.bench.signal.meter import BETA, meters
from marble_core.bench.signal.products import Products, products
from marble_core.bench.signal.rules import table as table_of_rules
from marble_core.bench.signal.truth import cosines_of_a_step, energies, true_cosines
from marble_core.config.schema import RunConfig
from marble_core.types import MarbleError

if TYPE_CHECKING:
    from rich.console import Console

RESULT = "signal.json"


def run(
    config: RunConfig,
    count: int,
    design: Design,
    adapter: Path | None,
    without: Sequence[str],
    out: Path,
    console: Console,
) -> dict[str, Any]:
    """The bank of ``count`` batches under ``out``, its tables on the console, and its numbers as ``signal.json``, which is returned.

    Rules balance all rewards, and once more all but each of ``without``. Raises MarbleError for a name that is no reward's, and
    where the bank under ``out`` is another.
    """
    for name in without:
        if name not in config.reward_names:
            raise MarbleError(f"--without {name} names no reward; the rewards are {', '.join(config.reward_names)}.")
    if len(config.reward_names) == 1 and without:
        raise MarbleError(f"--without {without[0]} leaves no reward to balance; leave it out.")
    paths = banks.collect(config, design, count, adapter, out, console)
    found = analyse(products(config.reward_names, paths), without, console)
    means = [batches.reward_means(path) for path in paths]
    rewards = {
        name: tables.numbers(np.asarray(np.mean([mean[name] for mean in means if name in mean])))
        for name in config.reward_names
    }
    found = {"batches": count, "bank": banks.settings_of(out), "mean_rewards": rewards, **found}
    (out / RESULT).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    console.print(f"Written to {out / RESULT}", soft_wrap=True)
    return found


def analyse(bank: Products, without: Sequence[str], console: Console) -> dict[str, Any]:
    """Prints the tables, and returns their numbers with ``names``, the order of every list of rewards."""
    parts, true, of_a_step, spread = energies(bank), true_cosines(bank), cosines_of_a_step(bank), meters(bank)
    tables.show_energies(bank, parts, console)
    tables.show_cosines(bank, true, of_a_step, console)
    rules, missing = table_of_rules()
    every, balances = range(bank.K), []
    for left_out in ("", *without):
        balanced = [k for k in every if bank.names[k] != left_out]
        compared = agreement(bank, rules, balanced)
        tables.show_agreement(bank, compared, balanced, console)
        by_rule = {
            name: {
                "cosine": tables.both(one.cosine),
                "gain_over_min_norm": tables.both(one.gain),
                "alpha": tables.both(one.alpha),
                "alpha_of_true_gram": tables.numbers(one.alpha_of_truth),
            }
            for name, one in compared.items()
        }
        balances.append({"balanced": [bank.names[k] for k in balanced], "rules": by_rule})
    tables.show_meters(bank, spread, console)
    for note in missing:
        console.print(note)
    return {
        "names": list(bank.names),
        "one_step": {name: tables.both(estimate) for name, estimate in parts.items()},
        "true_cosines": tables.both(true),
        "cosines_of_one_step": tables.both(of_a_step),
        "balance": balances,
        "meters": {"beta": BETA, **{name: tables.both(estimate) for name, estimate in spread.items()}},
        "missing": missing,
    }
