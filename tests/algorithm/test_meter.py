"""Signal and noise from the steps before, on gradients whose signal is known and against autograd; what the meter must not change."""

import json

import numpy as np
import pytest
import torch

from builders import learner, prompts, rewards, small_config, weights
from marble_core.algorithm import backward
from marble_core.algorithm.advantages import estimate
from marble_core.algorithm.meter import Meter
from marble_core.algorithm.projection import Projection
from marble_core.algorithm.split_half import SplitHalf
from marble_core.checkpoints import CheckpointStore
from marble_core.config.loading import load_config, read_config
from marble_core.models.rollout import collect
from marble_core.prompts import mix
from marble_core.rewards.scoring import score_all
from marble_core.step import optimizer_step
from marble_core.training import loop
from oracles import autograd_gradient, min_norm_by_enumeration

TIME = "balance.meter=time"
NAMES = ("clipscore", "pickscore", "ocr")


def small_meter(*overrides):
    return Meter(small_config("rewards=[{name: clipscore}, {name: pickscore}, {name: ocr}]", TIME, *overrides))


def shown(meter, g_KD, known_K=(True, True, True), w_K=(1.0, 0.0, 0.0)):
    """The meter's reading of a step with these gradients, in two layers, which it then remembers."""
    rows = {"a": torch.tensor(g_KD[:, :12]).view(3, 4, 3), "b": torch.tensor(g_KD[:, 12:])}
    G_KK = g_KD @ g_KD.T
    kept = meter.kept(rows, 3)
    reading = meter.read(kept, G_KK)
    meter.remember(meter.memorable(kept, {}, G_KK, np.array(known_K), np.array([w_K])))
    return reading


def noisy_steps(count, seed=0, D=80):
    """Gradients of fixed signals and fresh noise, several times as long."""
    rng = np.random.default_rng(seed)
    signal_KD = rng.normal(size=(3, D)) + np.array([[1.0], [1.0], [-1.0]])
    return signal_KD, [signal_KD + 3 * rng.normal(size=(3, D)) for _ in range(count)]


def test_the_estimate_in_time_is_unbiased_and_sharper_than_that_of_halves():
    signal_KD, steps = noisy_steps(600)
    meter, rng = small_meter(), np.random.default_rng(1)
    in_time = np.array([shown(meter, g).S_KK for g in steps])[5:]
    truth = signal_KD @ signal_KD.T
    error = in_time.std(0) / np.sqrt(len(in_time) / 2)
    assert (np.abs(in_time.mean(0) - truth) < 4 * error).all() and error.max() < 0.2 * truth.max()
    apart = []
    for g in steps:  # the halves of a step: its mean is the step, each has twice the noise
        differ = 3 * rng.normal(size=g.shape)
        both = np.concatenate([g + differ, g - differ]) / 2
        apart.append(SplitHalf(both @ both.T).cross)
    assert (np.diag(in_time.std(0)) < 0.75 * np.diag(np.std(apart, axis=0))).all()


def gradients_by_autograd(one):
    """The flat gradient of each reward in the step that comes, one ordinary backward each."""
    config, policy = one.config, one.policy
    batch = mix(prompts(), 6, 4, one.step, config.seed)
    rollout = collect(policy, batch, config.rollout)
    table = score_all(one.scorers, rollout.images_NHWC, batch.prompts_of(rollout.index_N))
    advantages = estimate(table, batch.group_N, "batch")
    found = []
    for k in range(3):
        weight_N = advantages.mask_NK[:, k] / advantages.count_K[k] / config.loss.timesteps
        g = autograd_gradient(policy, rollout, config, weight_N, advantages.A_NK[:, k])
        found.append(torch.cat([g[n].flatten() for n in sorted(g)]).numpy())
    return np.array(found)


@pytest.mark.parametrize("method", ["marble", "equal balance.observe=1"])
def test_self_consistency_and_the_cosines_of_the_last_update_are_those_of_the_written_out_rule(method):
    one = learner(
        TIME, "balance.meter_beta=0.6", f"balance.method={method.split()[0]}", *method.split()[1:], dtype=torch.float64
    )
    m, last = np.zeros(()), None
    for t in range(3):
        g = gradients_by_autograd(one)
        seen = optimizer_step(one, prompts()).metrics
        if t == 0:
            assert not any("last" in name or "_time/" in name for name in seen)
        else:
            mean = m / (1 - 0.6**t)
            for k, name in enumerate(NAMES):
                assert seen[f"consistency_time/{name}"] == pytest.approx(mean[k] @ g[k] / (g[k] @ g[k]), abs=1e-7)
                cosine = last @ g[k] / np.linalg.norm(last) / np.linalg.norm(g[k])
                assert seen[f"cosine/last:{name}"] == pytest.approx(cosine, abs=1e-7)
            assert seen["cosine/last_worst"] == min(seen[f"cosine/last:{name}"] for name in NAMES)
        unit = np.linalg.norm(g, axis=1) if method == "marble" else np.ones(3)
        last = np.array([seen[f"alpha/{n}"] for n in NAMES]) / unit @ g
        m = 0.6 * m + 0.4 * g


def test_auto_scores_the_directions_that_its_candidates_would_have_taken_by_the_next_steps_gradients():
    one = learner(TIME, "balance.trust=auto", dtype=torch.float64)
    before = gradients_by_autograd(one)
    assert optimizer_step(one, prompts()).metrics["trust/p"] == 2
    now = gradients_by_autograd(one)
    metrics = optimizer_step(one, prompts()).metrics
    unit = before / np.linalg.norm(before, axis=1, keepdims=True)
    shares = {"2": np.full(3, 1 / 3) @ unit, "raw": before.mean(0), "paper": min_norm_by_enumeration(unit @ unit.T)[0] @ unit}
    for label, d in shares.items():
        worst = min(d @ g / np.linalg.norm(d) / np.linalg.norm(g) for g in now)
        assert metrics[f"trust/score:{label}"] == pytest.approx(worst, abs=1e-5), label


def test_images_needed_are_those_at_which_half_of_the_squared_norm_is_signal():
    signal_KD, steps = noisy_steps(400)
    meter = small_meter()
    seen = [shown(meter, g).metrics(NAMES, 100) for g in steps][5:]
    share = np.mean([one["consistency_time/ocr"] for one in seen])
    truth = 9 * 80 / (signal_KD[2] @ signal_KD[2])  # noise over signal of 100 images: as many times 100 make them equal
    assert 1 / share - 1 == pytest.approx(truth, rel=0.1)
    one = next(s for s in seen if s["consistency_time/ocr"] > 0)
    assert one["images_needed_time/ocr"] == pytest.approx(100 * (1 / one["consistency_time/ocr"] - 1))
    assert all(np.isinf(s["images_needed_time/ocr"]) for s in seen if s["consistency_time/ocr"] <= 0)


def test_a_reward_without_a_gradient_keeps_its_average_and_one_that_is_no_number_reaches_nothing():
    _, steps = noisy_steps(4)
    whole, gap = small_meter(), small_meter()
    mixed = np.stack([steps[0], steps[3], steps[1], steps[2]])
    for g in steps[:3]:
        shown(whole, g)
    for g, known in zip((steps[0], steps[3], steps[1], steps[2]), (True, False, True, True), strict=True):
        g = g.copy()
        if not known:
            g[2] = np.nan
        shown(gap, g, (True, True, known))
    one, other = (torch.cat([m.mean[n].flatten(1) for n in "ab"], 1) for m in (whole, gap))
    assert torch.equal(one[2], other[2])
    written = np.tensordot((1 - gap.beta) * gap.beta ** np.arange(4.0)[::-1], mixed, 1)
    assert np.allclose(other[:2], written[:2], rtol=1e-6)
    assert gap.count_K.tolist() == [4, 4, 3] and all(bool(t.isfinite().all()) for t in gap.tensors().values())
    assert np.isnan(small_meter().read({}, np.eye(3)).S_KK).all(), "before any step nothing is known"


def state_of(meter):
    return json.dumps(meter.state()), {n: t.clone() for n, t in meter.tensors().items()}


@pytest.mark.parametrize("fault", ["reward", "gradient", "no reward tells"])
def test_a_step_that_is_skipped_changes_nothing_of_the_meter(fault, monkeypatch):
    one = learner(TIME, "balance.gram=time", scorers=rewards(fault_at=3 if fault == "reward" else None))
    for _ in range(2):
        optimizer_step(one, prompts())
    (said, tensors), memory = state_of(one.meter), json.dumps(one.balancer.state())
    if fault == "gradient":
        monkeypatch.setattr(backward.RowGradients, "combine", lambda self, w: {"x": torch.tensor([torch.nan])})
    if fault == "no reward tells":
        for scorer in one.scorers:
            scorer.score = lambda images, _: np.full(len(images), 0.5)
    assert optimizer_step(one, prompts()).skipped
    after, now = state_of(one.meter)
    assert said == after and all(torch.equal(t, now[n]) for n, t in tensors.items())
    assert memory == json.dumps(one.balancer.state())


def test_the_meter_changes_no_bit_of_the_update_and_neither_does_observing():
    settings = (["balance.meter=none"], [TIME, "balance.observe=1"], [TIME, "balance.gram=time"])
    runs = [learner("balance.every=2", *each) for each in (*settings, [*settings[2], "balance.observe=1"])]
    for _ in range(3):
        seen = [optimizer_step(one, prompts()).metrics for one in runs]
    plain, watched, by_time, by_time_watched = (weights(one) for one in runs)
    assert "consistency_time/ocr" in seen[1] and "consistency_time/ocr" not in seen[0]
    for a, b in ((plain, watched), (by_time, by_time_watched)):
        assert all(torch.equal(w, b[n]) for n, w in a.items())
    assert runs[2].meter.length_R.shape == (1,), "the update's direction, and no other"
    assert runs[3].meter.count_K.tolist() == [2, 2, 2], "observed steps are not remembered where the balance looks at the meter"
    assert not all(torch.equal(w, by_time[n]) for n, w in plain.items())


@pytest.mark.parametrize("setting", ["balance={gram: time, trust: auto}", "balance.meter_dimensions=64"])
def test_a_run_with_a_meter_in_time_that_is_stopped_goes_on_to_the_same_bits(setting, tmp_path):
    def run(place, steps):
        one = learner(setting, TIME, f"train.steps={steps}")
        loop.train(one, prompts(), CheckpointStore(tmp_path / place, None, "run"), lambda _: None)
        return one

    whole = run("whole", 3)
    run("parts", 2)
    resumed = run("parts", 3)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))
    (said, tensors), (again, others) = state_of(whole.meter), state_of(resumed.meter)
    assert said == again and tensors.keys() == others.keys() and all(torch.equal(t, others[n]) for n, t in tensors.items())
    kept, now = (
        {n: v for n, v in one.history[-1]["metrics"].items() if "time/" not in n or "_time/" in n} for one in (whole, resumed)
    )
    kept.pop("images_per_second"), now.pop("images_per_second")
    assert json.dumps(kept) == json.dumps(now)


def test_a_projection_keeps_inner_products_on_average_within_the_variance_that_it_states():
    rng = np.random.default_rng(0)
    x, y = (torch.tensor(rng.normal(size=(2, 700)) ** 3 + 0.4) for _ in range(2))  # a few large numbers
    layers = {"one": torch.stack([x[0], y[0]]), "other": torch.stack([x[1], y[1]]).view(2, 70, 10)}
    truth, D = float((x * y).sum()), 32
    found = np.array([float(p[0] @ p[1]) for p in (Projection(D, seed)(layers) for seed in range(500))])
    bound = np.sqrt((float((x * x).sum() * (y * y).sum()) + truth**2) / D)
    assert abs(found.mean() - truth) < 4 * bound / np.sqrt(500)
    assert 0.5 * bound < found.std() < 1.1 * bound
    apart = sum(Projection(D, 3)({name: part}) for name, part in layers.items())
    assert torch.allclose(apart, Projection(D, 3)(layers)), "parts of the layers may be projected on different processes"


def test_a_projected_meter_reads_the_same_within_the_error_that_it_logs():
    _, steps = noisy_steps(300)
    exact, projected = small_meter(), small_meter("balance.meter_dimensions=48")
    pairs = [(shown(exact, g), shown(projected, g)) for g in steps]
    assert pairs[0][0].projection_error is None and 0.01 < np.mean([p.projection_error for _, p in pairs]) < 1
    assert all(set(t.shape) <= {1, 3, 48} for t in projected.tensors().values())
    one, other = (np.array([p[n].S_KK for p in pairs])[5:] for n in (0, 1))
    assert np.abs(one.mean(0) - other.mean(0)).max() < 4 * (one - other).std(0).max() / np.sqrt(len(one) / 10)
    assert not np.allclose(one, other)


def test_many_rewards_are_projected_by_themselves_and_few_are_not():
    balance = small_config(TIME).balance
    assert (balance.projected(16), balance.projected(17)) == (0, 65536)
    assert small_config(TIME, "balance.meter_dimensions=0").balance.projected(64) == 0


def test_configurations_that_are_stored_with_the_older_name_of_the_meter_are_read(tmp_path):
    for older, meter in ((True, "halves"), (False, "none")):
        stored = json.loads(load_config("demo").to_json())
        stored["balance"].pop("meter")
        stored["balance"]["halves"] = older
        (tmp_path / "config.json").write_text(json.dumps(stored))
        assert read_config(tmp_path / "config.json") == load_config("demo", overrides=[f"balance.meter={meter}"])
    assert load_config("sd35-medium-paper", overrides=["balance.halves=true"]).balance.meter == "halves"
