"""The pipeline's form as overrides of the configuration."""

import pytest

from marble_core.config.loading import load_config
from marble_core.config.pipeline_parameters import overrides_of
from marble_core.types import MarbleError


def test_a_filled_form_is_the_configuration_that_it_says() -> None:
    made = overrides_of(
        "demo",
        config='{"optimizer": {"lr": 0.01}, "train": {"steps": 5}}',
        prompts="ocr=s3://b/ocr.jsonl general=https://h/x?a=b",
        rewards=" ocr, hpsv2",
        gpus="8",
        method="equal",
        steps="7",
        seed="0",
        gate_margin="0.0",
        base_model="org/model: one # two",
    )
    config = load_config("demo", overrides=made)
    assert config.optimizer.lr == 0.01 and config.train.steps == 7, "a field of the form wins over config"
    assert config.data.train["ocr"] == "s3://b/ocr.jsonl" and config.data.train["general"] == "https://h/x?a=b"
    assert config.reward_names == ("ocr", "hpsv2") and config.rewards[0].options == {"detection": False}
    assert config.hardware.gpus == 8, "so that the estimate is of these"
    assert (config.train.processes, config.balance.method, config.seed, config.registry.margin) == (8, "equal", 0, 0.0)
    assert config.model.path == "org/model: one # two", "no text of the form is read as YAML"


def test_overrides_of_the_command_line_pass_through_as_they_are() -> None:
    assert overrides_of("demo", config='["train.steps=5"]') == ["train.steps=5"]


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"config": "{train"}, "config is not JSON"),
        ({"config": "[1]"}, "config must be like"),
        ({"gpus": "two"}, "gpus is 'two'"),
        ({"gpus": "-1"}, "gpus is '-1'"),
        ({"steps": "many"}, "steps is 'many': give a whole number"),
        ({"gate_margin": "x"}, "gate_margin is 'x': give a number"),
        ({"rehearse": "perhaps"}, "rehearse is 'perhaps'"),
        ({"prompts": "s3://bucket/file"}, "general=URI"),
        ({"prompts": "general=a ocr=b general=c"}, "the source 'general' twice"),
        ({"prompts": "a cat " * 10_000}, "in which the prompts stand"),
        ({"evaluation_gpus": "all"}, "evaluation_gpus is 'all'"),
    ],
)
def test_a_field_that_cannot_be_right_is_one_sentence(field: dict[str, str], says: str) -> None:
    with pytest.raises(MarbleError, match=says) as error:
        overrides_of("demo", **field)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(("margin", "says"), [("-0.02", "at least 0"), ("nan", "finite number")])
def test_a_gate_margin_that_can_be_no_margin_is_refused_by_its_setting(margin: str, says: str) -> None:
    with pytest.raises(MarbleError, match=rf"registry\.margin.*{says}"):
        load_config("demo", overrides=overrides_of("demo", gate_margin=margin))
