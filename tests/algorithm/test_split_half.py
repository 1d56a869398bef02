"""Signal and noise from two halves, on gradients whose signal and noise are known."""

import numpy as np

from marble_core.algorithm.split_half import SplitHalf, cosines, images_for_half, split
from marble_core.types import Prompt, PromptBatch

SIGNAL = np.array([[3.0, 0.0, 0.0, 0.0], [0.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.5]])  # three rewards in four dimensions


def draw(rng, noise=1.0, prompts=12, per_prompt=4, inside=False):
    """Halves of the mean over images of signal + a prompt's noise + an image's; centred noise if the halves cut groups."""
    shape = (prompts, per_prompt, *SIGNAL.shape)
    own = rng.normal(size=shape)
    if inside:
        own -= own.mean(1, keepdims=True)  # advantages add up to zero in a group, and so does what they weigh
    g = (SIGNAL + noise * own) / (prompts * per_prompt)
    in_a = np.zeros((prompts, per_prompt), bool)
    if inside:
        in_a[:, : per_prompt // 2] = True
    else:
        in_a[: prompts // 2] = True
    rows = np.concatenate([g[in_a].sum(0), g[~in_a].sum(0)])
    return SplitHalf(rows @ rows.T)


def test_the_cross_gram_matrix_is_an_unbiased_estimate_of_the_signals():
    rng = np.random.default_rng(0)
    draws = np.array([draw(rng, noise=3.0).cross for _ in range(1000)])
    error, standard = draws.mean(0) - SIGNAL @ SIGNAL.T, draws.std(0) / np.sqrt(1000)
    assert (np.abs(error) < 4 * standard).all()
    full = np.mean([draw(rng, noise=3.0).whole for _ in range(1000)], axis=0)
    assert np.trace(full) > np.trace(SIGNAL @ SIGNAL.T) + 1.0, "the plain Gram matrix carries the noise"


def test_self_consistency_predicts_the_share_of_noise():
    rng = np.random.default_rng(1)
    signal = np.array([3.0**2, 5.0, 0.25])
    for noise in (0.5, 2.0, 6.0):
        seen = np.mean([draw(rng, noise=noise).consistency() for _ in range(1000)], axis=0)
        expected = signal / (signal + 4 * noise**2 / 24)  # four dimensions, 24 images in a half
        assert np.allclose(seen, expected, atol=0.05)


def test_halves_inside_a_group_are_biased_where_halves_by_group_are_not():
    rng = np.random.default_rng(2)
    by_group = np.array([np.diag(draw(rng, noise=6.0).cross) for _ in range(1000)])
    inside = np.array([np.diag(draw(rng, noise=6.0, inside=True).cross) for _ in range(1000)])
    truth, standard = np.diag(SIGNAL @ SIGNAL.T), inside.std(0) / np.sqrt(1000)
    assert (np.abs(by_group.mean(0) - truth) < 4 * by_group.std(0) / np.sqrt(1000)).all()
    assert (inside.mean(0) < truth - 4 * standard).all()


def test_the_number_of_images_that_is_named_brings_the_consistency_to_a_half():
    rng = np.random.default_rng(3)
    few = np.mean([draw(rng, noise=8.0, prompts=12).consistency()[1] for _ in range(2000)])
    needed = images_for_half(few, 48)
    prompts = 2 * round(needed / 8)
    assert abs(np.mean([draw(rng, noise=8.0, prompts=prompts).consistency()[1] for _ in range(1000)]) - 0.5) < 0.05
    assert images_for_half(-0.1, 48) == float("inf")


def test_held_out_cosines_are_near_zero_for_noise_where_in_sample_ones_are_not():
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(300, 6, 50))
    held_out = [SplitHalf(r @ r.T).held_out(lambda G: np.ones(3)).mean() for r in rows]
    assert abs(np.mean(held_out)) < 0.02
    whole = [SplitHalf(r @ r.T).whole for r in rows]
    in_sample = [cosines(np.ones(3), G).mean() for G in whole]
    assert np.mean(in_sample) > 0.4


def test_cosines_are_those_of_the_vectors():
    rng = np.random.default_rng(5)
    g, w, rows = rng.normal(size=(3, 50)), rng.random(3), rng.normal(size=(6, 50))
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert np.allclose(cosines(w, g @ g.T), [cosine(w @ g, row) for row in g])
    expected = [(cosine(w @ rows[:3], rows[3 + k]) + cosine(w @ rows[3:], rows[k])) / 2 for k in range(3)]
    assert np.allclose(SplitHalf(rows @ rows.T).held_out(lambda _: w), expected)


def test_prompts_of_the_same_text_are_one_group_and_stay_in_one_half():
    texts = ["a", "b", "a", "c", "b", "d"]
    batch = PromptBatch(tuple(Prompt(t, "general") for t in texts), 2, step=0, seed=0)
    assert batch.group_N.tolist() == [0, 0, 1, 1, 0, 0, 3, 3, 1, 1, 5, 5]
    half_N = split(batch)
    assert all(len({half_N[i] for i in np.flatnonzero(batch.group_N == g)}) == 1 for g in set(batch.group_N))
    assert {half_N[batch.group_N == g][0] for g in set(batch.group_N)} == {0, 1}


def test_the_split_keeps_prompts_whole_and_sources_balanced():
    prompts = tuple(Prompt(f"{s} {n}", s) for n in range(5) for s in ("general", "ocr", "geneval"))
    half_N = split(PromptBatch(prompts, 4, step=0, seed=0))
    by_prompt = half_N.reshape(15, 4)
    assert (by_prompt == by_prompt[:, :1]).all()
    for offset in range(3):
        assert by_prompt[offset::3, 0].sum() in (2, 3)
    assert half_N.sum() in (28, 32)


def test_two_sources_in_turn_are_split_each_for_itself():
    """By turns alone the first source would lie in one half and the second in the other."""
    prompts = tuple(Prompt(f"{s} {n}", s) for n in range(4) for s in ("general", "ocr"))
    half_M = split(PromptBatch(prompts, 2, step=0, seed=0))[::2]
    assert half_M[::2].tolist() == [1, 0, 1, 0] and half_M[1::2].tolist() == [0, 1, 0, 1]
