"""What a scorer may return: numbers as numpy and torch have them, and one sentence for all else."""

import numpy as np
import pytest
import torch

from marble_core.rewards.scoring import score_all
from marble_core.types import MarbleError, Prompt
from tiny_rewards import noise

GENERAL = Prompt("one", "general")


class Returns:
    """A scorer that returns the same, whatever the images."""

    name, value_range = "mine", (0.0, 1.0)

    def __init__(self, returned, side=()):
        self.returned, self.side = returned, side

    def applies(self, prompt):
        return True

    def self_check(self):
        pass

    def score(self, images_NHWC, prompts):
        return self.returned


@pytest.mark.parametrize(
    "returned",
    [
        np.array([1, 2]),
        np.array([[1.0], [2.0]], np.float16),
        np.array([1, 2], np.uint8),
        [1, 2.0],
        (np.float32(1), 2),
        [np.array(1.0), torch.tensor(2.0, requires_grad=True)],
        torch.tensor([1.0, 2.0], requires_grad=True),
        torch.tensor([[1.0], [2.0]], dtype=torch.bfloat16),
        torch.tensor([1, 2]),
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True) * 1,
    ],
)
def test_numbers_are_taken_as_numpy_and_torch_have_them(returned):
    table = score_all([Returns(returned)], noise(2, 8), [GENERAL] * 2)
    assert table.R_NK[:, 0].tolist() == [1, 2] and table.R_NK.dtype == np.float64


def test_side_values_come_as_a_tensor_and_true_is_1():
    two = torch.tensor([[1, 3], [2, 4]], dtype=torch.bfloat16, requires_grad=True)
    table = score_all([Returns(two, ("best",))], noise(2, 8), [GENERAL] * 2)
    assert table.R_NK[:, 0].tolist() == [1, 2] and table.side["mine/best"].tolist() == [3, 4]
    assert score_all([Returns([True, False])], noise(2, 8), [GENERAL] * 2).R_NK[:, 0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        (None, "None"),
        ({"score": [1, 2]}, "a dict"),
        ((np.ones(2), {"note": 1}), "a tuple of ndarray and dict"),
        ((torch.ones(2), None), "a tuple of Tensor and NoneType"),
        ([[1.0], [1.0, 2.0]], "a list of list"),
        ((value for value in (1, 2)), "a generator"),
        (np.array([1j, 2]), r"a ndarray of complex128 with shape \(2,\)"),
        (torch.tensor([1j, 2]), r"a Tensor of torch.complex64 with shape \(2,\)"),
        (np.array(["2026-01-01", "2026-01-02"], "datetime64[D]"), r"a ndarray of datetime64\[D\] with shape"),
        (["1", "2"], "a list of str"),
        ("12", "a str"),
        (np.array(["1", "2"]), "a ndarray of <U1"),
        (np.array([1.0, "2"], object), "a ndarray of object"),
        ([object(), 1], "a list of object and int"),
    ],
)
def test_what_is_no_numbers_is_named_with_the_reward_and_blames_no_prompt(returned, named):
    with pytest.raises(
        MarbleError, match=rf"^The reward 'mine' returned {named}.*, not numbers: .* of shape \(2,\)\.$"
    ) as caught:
        score_all([Returns(returned)], noise(2, 8), [GENERAL] * 2)
    assert repr(GENERAL.text) not in str(caught.value)


@pytest.mark.parametrize("returned", [np.ones(3), 1.0, np.ones((2, 2)), [[1, 2, 3]], []])
def test_another_number_of_numbers_is_named(returned):
    with pytest.raises(MarbleError, match=r"^The reward 'mine' returned shape .*, not one number for each of 2 images\.$"):
        score_all([Returns(returned)], noise(2, 8), [GENERAL] * 2)
