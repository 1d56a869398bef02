"""What is not finite is refused where it would be looked at or scored, and skipped where it would be trained on."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from builders import PROMPTS, SmallModel, small_config, small_policy
from marble_core.config.loading import load_config
from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.evaluation.results import Incumbent
from marble_core.evaluation.run import loaded, measure
from marble_core.models.policy import Policy
from marble_core.models.previews import grid
from marble_core.models.sampling import sample
from marble_core.types import MarbleError, Prompt


class Overflowing(SmallModel):
    """Its velocity for one prompt is not finite, as that of a base whose activations overflow."""

    def encode(self, prompts):
        self.bad = torch.tensor([text == "bad" for text in prompts])
        return super().encode(prompts)

    def velocity(self, x_BCHW, t_B, conditioning):
        v = super().velocity(x_BCHW, t_B, conditioning)
        v[self.bad[-len(v) :]] = torch.inf
        return v


def test_latents_that_are_not_finite_are_refused_with_prompt_and_precision_and_left_to_a_training_step():
    model, texts = Overflowing(), ["good", "bad"]
    with pytest.raises(MarbleError) as caught:
        sample(model, texts, [1, 2], "euler", 2, 2, precision="fp16")
    assert "the prompt 'bad' are not finite, with model.precision fp16: set bf16 or fp32." in str(caught.value)
    x0 = sample(model, texts, [1, 2], "euler", 2, 2)[0]
    assert x0[0].isfinite().all() and not x0[1].isfinite().all()


@pytest.fixture(scope="module")
def demo():
    config = load_config("demo", overrides=["evaluation.steps=1", "evaluation.batch_size=2", "lora.rank=2"])
    config = config.model_copy(update={"rewards": tuple(r for r in config.rewards if r.name == "geneval")})
    return config, [Prompt("a red square", "geneval", {"include": [{"class": "square", "count": 1, "color": "red"}]})]


@pytest.mark.filterwarnings("ignore:invalid value")
def test_pixels_that_are_not_finite_are_refused_by_the_evaluation_and_the_published_table(demo, tmp_path, monkeypatch):
    """As a VAE that overflows: the latents are finite, the image is black."""
    config, prompts = demo
    load = Policy.load.__func__

    def broken(cls, config):
        policy = load(cls, config)
        policy.model.vae.decoder.conv_out.bias.data[0] = torch.nan
        return policy

    monkeypatch.setattr(Policy, "load", classmethod(broken))
    with pytest.raises(MarbleError, match=r"the prompt 'a red square' are not finite, with model\.precision"):
        measure(config, prompts, {}, tmp_path)


def test_the_samples_of_a_training_are_refused_too():
    config = small_config("evaluation.steps=2")
    policy = small_policy(config)
    for p in policy.parameters_of("default").values():
        p.data[0, 0] = torch.nan
    with pytest.raises(MarbleError, match=r"are not finite.*, with model\.precision"):
        grid(policy, PROMPTS, config)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_lora_file_with_a_value_that_is_not_finite_is_refused_by_file_and_tensor(demo, tmp_path, value):
    config, _ = demo
    policy = Policy.load(config)
    policy.add_trainable(config)
    policy.save_adapter(tmp_path, policy.parameters_of("default"))
    path = tmp_path / ADAPTER_FILE
    tensors = load_file(path)
    name = sorted(tensors)[3]
    tensors[name][0, 0] = value
    save_file(tensors, path)
    fresh = Policy.load(config)
    with pytest.raises(MarbleError) as caught:
        fresh.load_adapter(tmp_path)
    assert f"The LoRA {path} is damaged: 1 of the {tensors[name].numel()} values of its tensor {name} are not finite" in str(
        caught.value
    )
    assert "its tensor" in (loaded(fresh, Incumbent("3", tmp_path)).absent or ""), "such a champion is left out with a sentence"
