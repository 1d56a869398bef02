"""The diversity of an image among those of its prompt, against loops over pairs and against the gradient it stands for."""

from itertools import product

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from marble_core.config.loading import load_config
from marble_core.evaluation.evaluator import Evaluator
from marble_core.evaluation.roles import BASE
from marble_core.models.policy import Policy
from marble_core.rewards.clip import load_clip
from marble_core.rewards.diversity import Diversity
from marble_core.rewards.registry import load_scorers
from marble_core.rewards.scoring import BackgroundScores, score_all
from marble_core.types import MarbleError, Prompt
from tiny_rewards import noise, save_clip

PROMPTS = [Prompt(text, "general") for text in ("a", "b", "a", "a", "b", "b", "b")]
GROUP_N = np.array([4, 1, 4, 4, 1, 1, 1])  # as they lie, not sorted


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


def distances(checkpoint, images_NHWC):
    """1 - cosine of transformers' own features, image by image."""
    model, clip = CLIPModel.from_pretrained(checkpoint), load_clip(checkpoint)
    with torch.no_grad():
        f = [
            model.get_image_features(pixel_values=clip.preprocess(image[None])).pooler_output[0].double()
            for image in images_NHWC
        ]
    return np.array([[1 - float(a @ b / (a.norm() * b.norm())) for b in f] for a in f])


def test_an_images_diversity_is_its_mean_distance_to_the_others_of_its_group(checkpoint):
    images = noise(7, 32)
    found = score_all([Diversity(checkpoint)], images, PROMPTS, group_N=GROUP_N).R_NK[:, 0]
    d_NN = distances(checkpoint, images)
    for i in range(7):
        others = [d_NN[i, j] for j in range(7) if j != i and GROUP_N[j] == GROUP_N[i]]
        assert found[i] == pytest.approx(np.mean(others), abs=1e-5)
    assert found.std() > 0


def test_equal_images_have_none_and_one_alone_is_refused(checkpoint):
    scorer = Diversity(checkpoint)
    same = np.repeat(noise(1, 32), 3, axis=0)
    assert scorer.score(same, PROMPTS[:3], np.zeros(3, int)).max() < 1e-6
    with pytest.raises(MarbleError, match="'a' has one alone"):
        score_all([scorer], noise(3, 32), PROMPTS[:3], group_N=np.array([0, 1, 1]))


def test_centred_in_its_group_it_gives_the_gradient_of_the_expected_pairwise_distance():
    """By enumeration of all groups that a policy over four images can draw: the reward of G images, centred, times the gradient of
    log pi is (G - 2) / 2G of the gradient of E d(x, y), so two images say nothing, and more say all."""
    rng = np.random.default_rng(0)
    d = rng.uniform(size=(4, 4))
    d = (d + d.T) * (1 - np.eye(4))
    logits = torch.tensor(rng.normal(size=4), requires_grad=True)
    pi = logits.softmax(0)
    (truth,) = torch.autograd.grad(pi @ torch.tensor(d) @ pi, logits, retain_graph=True)
    score = [torch.autograd.grad(pi[x].log(), logits, retain_graph=True)[0] for x in range(4)]
    for G in (2, 3, 4):
        total = torch.zeros(4, dtype=torch.float64)
        for drawn in product(range(4), repeat=G):
            r = np.array([np.mean([d[drawn[i], drawn[j]] for j in range(G) if j != i]) for i in range(G)])
            chance = float(torch.stack([pi[x] for x in drawn]).prod())
            total += sum(chance * (r[i] - r.mean()) / G * score[drawn[i]] for i in range(G))
        torch.testing.assert_close(total, (G - 2) / (2 * G) * truth, atol=1e-12, rtol=1e-9)


class Whole:
    """Counts its group, in the background if it were asked to."""

    name, value_range, groupwise, background = "whole", (0.0, 9.0), True, True

    def __init__(self, fails_on=None):
        self.fails_on, self.seen = fails_on, []

    def applies(self, prompt):
        return prompt.source == "general"

    def score(self, images_NHWC, prompts, group_N):
        self.seen.append(group_N.tolist())
        if self.fails_on in group_N:
            raise RuntimeError("no")
        return np.array([(group_N == g).sum() for g in group_N])

    def self_check(self):
        pass


def test_a_groupwise_scorer_is_given_whole_groups_of_the_prompts_it_applies_to():
    prompts = [*PROMPTS, Prompt("c", "ocr")]
    groups = np.append(GROUP_N, 9)
    scorer = Whole()
    ahead = BackgroundScores([scorer], prompts, group_N=groups)
    for part in (slice(0, 3), slice(3, 8)):
        ahead.add(noise(8, 8)[part])
    assert scorer.seen == [], "nothing is scored before its group is whole"
    found = score_all([scorer], noise(8, 8), prompts, ahead).R_NK[:, 0]
    assert found[:7].tolist() == [3, 4, 3, 3, 4, 4, 4] and np.isnan(found[7])
    assert scorer.seen == [GROUP_N.tolist()]


def test_a_groupwise_scorer_that_fails_on_a_group_gives_that_groups_images_no_value() -> None:
    scorer = Whole(fails_on=1)
    table = score_all([scorer], noise(7, 8), PROMPTS, group_N=GROUP_N)
    assert table.missing == {(i, 0): "RuntimeError: no" for i in range(7) if GROUP_N[i] == 1}
    assert table.R_NK[GROUP_N == 4, 0].tolist() == [3, 3, 3] and np.isnan(table.R_NK[GROUP_N == 1, 0]).all()
    assert scorer.seen == [GROUP_N.tolist(), [4, 4, 4], [1, 1, 1, 1]], "each group is tried alone"
    with pytest.raises(ValueError, match="which images are one"):
        score_all([Whole()], noise(7, 8), PROMPTS)


def test_in_an_evaluation_it_is_the_mean_distance_of_the_prompts_that_diversity_is_measured_on(tmp_path):
    clip = "options: {checkpoint: 'demo://rewards/clip'}"
    rewards = f"rewards=[{{name: clipscore, {clip}}}, {{name: diversity, {clip}}}]"
    small = ["evaluation.steps=2", "evaluation.batch_size=2", "evaluation.diversity_prompts=2", "evaluation.diversity_images=3"]
    config = load_config("demo", overrides=[rewards, *small])
    scorers = load_scorers(config.measured)
    asked = [Prompt("a red circle", "general"), Prompt("a blue square", "general"), Prompt("a green stripe", "general")]
    work = Evaluator(config, asked, scorers, tmp_path, [BASE])
    found = work.sampled(BASE, Policy.load(config), None)
    assert found.table.names == ("clipscore", "diversity")
    assert np.isnan(found.table.R_NK[:, 1]).tolist() == [False, False, True]
    np.testing.assert_allclose(found.table.R_NK[:2, 1], found.distances_M, atol=1e-9)
