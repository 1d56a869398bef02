"""What the method costs on SD3.5-Medium's shape, counted in FLOP on tensors without numbers."""

import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel

from marble_core import bench
from marble_core.bench import targets
from marble_core.bench.costs import REWARDS, Parts, Schedule, with_halves
from marble_core.bench.counted import count, flops
from marble_core.bench.measured import measure, peak_memory
from marble_core.bench.probe import Probe
from marble_core.bench.shapes import SD35_MEDIUM, SD35_MEDIUM_CUT, demo
from marble_core.config.loading import load_config
from marble_core.estimate import sizes_of, work
from marble_core.estimate.work import flop_of_velocity

ROWS = [1, *map(with_halves, REWARDS)]


@pytest.fixture(scope="module")
def parts() -> Parts:
    return count(SD35_MEDIUM, ROWS)


def test_a_velocity_costs_two_and_a_half_tflop_an_image(parts):
    assert parts.forward == pytest.approx(2.47e12, rel=2e-3)
    assert parts.reference < parts.forward == parts.taped


def test_a_velocity_is_estimated_at_what_is_counted(parts):
    config = load_config("sd35-medium-8gpu")
    assert flop_of_velocity(config, sizes_of(config.model)) == pytest.approx(parts.forward, rel=0.01)
    assert parts.rows[with_halves(5)] / parts.forward == pytest.approx(work.BACKWARD, rel=0.01)


def test_the_lora_has_191_layers():
    assert Probe(SD35_MEDIUM, "meta").layers == 191


def test_weighting_by_rewards_is_next_to_nothing_beside_the_backward(parts):
    assert parts.plain / parts.forward == pytest.approx(1.13, abs=0.005)
    assert parts.rows[with_halves(64)] < 1.025 * parts.plain


def test_exact_balancing_costs_three_tenths_of_a_plain_step_whatever_the_number_of_rewards(parts):
    found = {t.name: t for t in targets.counted(parts)}
    assert all(t.reached for t in found.values()), found


def test_a_pass_for_each_reward_costs_what_exact_balancing_saves(parts):
    ratios = targets.ratios(parts, Schedule(kl_fraction=1))
    assert ratios["5 + 1 separate passes"] == pytest.approx(2.1, abs=0.05)
    assert ratios["64 + 1 separate passes"] == pytest.approx(15, abs=0.5)


def test_the_weighting_of_rows_is_counted_in_place_or_not():
    total, weights, rows = torch.zeros(5, 7), torch.zeros(5, 3), torch.zeros(3, 7)
    in_place, _ = flops(lambda: total.addmm_(weights, rows))
    assert in_place == flops(lambda: torch.addmm(total, weights, rows))[0] == 2 * 5 * 3 * 7


def test_what_is_counted_without_numbers_is_what_is_computed_with_them():
    shape = replace(demo(), images=2)
    empty = count(shape, [3])
    with sdpa_kernel(SDPBackend.MATH):  # torch's counter does not know the flash attention of CPUs
        real = Probe(shape, "cpu").parts([3], flops)
    assert real.forward == 2 * empty.forward
    assert real.plain == 2 * empty.plain
    assert real.rows[3] == 2 * empty.rows[3]


def test_measured_parts_compose_to_the_same_table_as_counted_ones():
    shape = replace(demo(), images=2)
    found = targets.ratios(measure(shape, ROWS, rounds=1), shape.schedule)
    counted = targets.ratios(count(shape, ROWS), shape.schedule).keys()
    assert found.keys() - counted == {"TorchJD's autojac, K = 2", "TorchJD's autojac, K = 5"} and not counted - found.keys()
    assert all(value > 0 for value in found.values())


def test_the_bench_writes_json_and_says_which_targets_are_missed(tmp_path, monkeypatch, parts):
    monkeypatch.setattr("marble_core.bench.counted.count", lambda shape, rows: parts)
    with Console(width=140, record=True) as console:
        bench.run(tmp_path / "bench.json", 0, console)
    found = json.loads((tmp_path / "bench.json").read_text())["counted"]
    assert "whole step" in console.export_text()
    assert found["ratios"]["KL on 1/8"]["exact, K = 5"] == pytest.approx(1.30, abs=0.01)
    assert {t["name"] for t in found["targets"]} >= {"exact, dearest K / cheapest K"}


@pytest.mark.deep
def test_peak_memory_grows_with_the_accumulators_and_not_with_the_setup_of_the_model():
    lora_bytes = 4 * Probe(SD35_MEDIUM_CUT, "meta").lora_size
    few, many = peak_memory(17), peak_memory(65)
    assert many - few == pytest.approx(48 * lora_bytes, rel=0.25)
