"""Witnesses against images whose numbers are known, and against other people's code."""

import numpy as np
import pytest
from PIL import Image
from scipy.stats import entropy

from marble_core.evaluation import witnesses


def flat(colour: tuple[int, int, int], side: int = 8) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


def test_an_edge_is_where_luma_changes_and_a_flat_image_has_none() -> None:
    stripes, noise = flat((0, 0, 0)), np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    stripes[:, 4:] = 255
    ramp = np.repeat(np.arange(8, dtype=np.uint8)[None, :, None] * 5, 8, axis=0).repeat(3, axis=2)  # .02 from pixel to pixel
    found = witnesses.of_images(np.stack([flat((9, 99, 200)), stripes, noise, ramp]))["edge_density"]
    assert found[0] == 0 and found[3] == 0
    assert found[1] == pytest.approx(1 / 7), "one column of the seven between eight"
    assert found[2] > 0.9


def test_colour_entropy_is_that_of_the_shares_of_64_colours() -> None:
    two, image = flat((0, 0, 0)), np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    two[:4] = 255
    near = flat((10, 10, 10))
    near[0] = 30  # another grey of the same level
    found = witnesses.of_images(np.stack([flat((1, 2, 3)), two, near]))["colour_entropy"]
    np.testing.assert_allclose(found, [0, 1, 0], atol=1e-12)
    _, counts = np.unique(image.reshape(-1, 3) // 64, axis=0, return_counts=True)
    np.testing.assert_allclose(witnesses.of_images(image[None])["colour_entropy"], entropy(counts, base=2))


def test_dark_is_what_is_below_its_share_of_pillows_luma() -> None:
    image = np.random.default_rng(2).integers(0, 80, (32, 32, 3), np.uint8)
    luma = np.asarray(Image.fromarray(image).convert("L")) / 255
    sure = abs(luma - witnesses.DARK) > 1 / 255  # Pillow rounds
    low = (luma < witnesses.DARK)[sure].sum() / luma.size
    found = witnesses.of_images(image[None])["dark_share"][0]
    assert 0.2 < low <= found <= low + (~sure).mean()


def test_the_norm_of_standard_normal_latents_is_1_whatever_their_size() -> None:
    rng = np.random.default_rng(3)
    assert witnesses.latent_norm(rng.normal(size=(3, 4000)))[0] == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(witnesses.latent_norm(np.full((2, 9), -2.0)), 2)


def test_a_group_is_tied_where_all_its_rewards_are_equal_and_where_a_reward_does_not_apply_nothing_is_said() -> None:
    found = witnesses.ties(np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [np.nan] * 3]))
    np.testing.assert_array_equal(found, [1, 0, np.nan])
