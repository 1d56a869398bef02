"""GPU hours before a run: its hours times the GPUs that it holds, and a limit that refuses."""

import pytest

from marble_core.config.loading import load_config
from marble_core.config.pipeline_parameters import gpus_held, overrides_of
from marble_core.estimate import check_gpu_hours, gpu_hours_of, hours_of, sizes_of
from marble_core.types import MarbleError
from with_cards import resolve_batch_sizes

EIGHT = "sd35-medium-8gpu"


def config(preset: str = EIGHT, **form: str):
    return resolve_batch_sizes(load_config(preset, overrides=overrides_of(preset, **form)))


def test_gpu_hours_are_the_hours_times_the_gpus_of_the_pods_and_none_without_gpus() -> None:
    form = {"gpus": "8", "evaluation_gpus": "1"}
    held = gpus_held(own := config(**form), form, on_cluster=True)
    assert held == (8, 1)
    hours, found = hours_of(own, sizes_of(own.model)), gpu_hours_of(own, held)
    assert found.low == pytest.approx(8 * (hours.low + hours.evaluation)), "one GPU takes eight times as long to evaluate"
    assert found.high == pytest.approx(8 * (hours.low + hours.evaluation) * hours.high / hours.low)
    assert gpu_hours_of(own, (8, 8)).low == found.low > gpu_hours_of(own, (8, 0)).low
    assert found.high > 8 * hours.high > found.low > 0
    assert str(found).endswith("8 GPUs to train and 1 to evaluate; without scoring and loading")
    without = gpu_hours_of(own, gpus_held(own, {}, on_cluster=True))
    assert without.high == 0, "a form without GPUs makes pods without them, whatever the preset is for"
    short = gpu_hours_of(own, held, rehearsal=True)
    assert 0 < short.high < found.low / 20


def test_of_several_nodes_all_gpus_count_and_on_a_laptop_those_that_the_configuration_states() -> None:
    several = load_config("demo", overrides=["train.nodes=2", "train.processes=4"])
    assert gpus_held(several, {"gpus": "", "evaluation_gpus": "1"}, on_cluster=True) == (8, 1)
    assert gpus_held(config(), {}, on_cluster=False) == (8, 8)
    assert gpus_held(load_config("demo"), {}, on_cluster=False) == (0, 0)


def test_a_run_above_its_limit_is_refused_in_a_sentence_and_one_at_it_is_not() -> None:
    own = config()
    found = gpu_hours_of(own, (8, 1))

    def limited(limit: float):
        return own.model_copy(update={"hardware": own.hardware.model_copy(update={"max_gpu_hours": limit})})

    check_gpu_hours(own, found)
    check_gpu_hours(limited(found.high), found)
    with pytest.raises(MarbleError, match=rf"may take {found.high:.3g} GPU hours, and .*max-gpu-hours\) is 2: train fewer"):
        check_gpu_hours(limited(2), found)
    check_gpu_hours(limited(0), gpu_hours_of(own, (0, 0)))
    with pytest.raises(MarbleError, match="cannot be held against"):
        check_gpu_hours(limited(2), None)
