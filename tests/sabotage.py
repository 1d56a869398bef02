"""Sabotages of the core, each a change of text, and the test that must fail under it: `make sabotage` shows that it does.

A row says what is wrong, where, the text that is there once, the text that takes its place, and a test.
"""

from __future__ import annotations

import sys

from planted import ROOT, outcome, warm

ALGORITHM, MODELS = "marble_core/algorithm/", "marble_core/models/"
STEP = "tests/test_written_step.py::test_steps_are_what_the_formulas_make_of_them"
MARBLE, SUM, GDPO = f"{STEP}[marble]", f"{STEP}[weighted_sum]", f"{STEP}[gdpo at times between]"
UPDATES = "tests/models/test_policy.py::test_ten_updates_move_old_and_the_ema_as_the_formulas_say"
ROLLOUT = "tests/test_written_step.py::test_a_rollout_is_dpm_solver_2m_by_old_under_each_images_own_prompt"
RULE, BASE = "tests/algorithm/test_balance_rule.py::", "tests/algorithm/test_baselines.py::"
CROSS = f"{RULE}test_the_signals_gram_matrix_is_averaged_floored_and_has_a_ridge"
PAIRS, POLICY, BALANCE = f"{ALGORITHM}backward.py", f"{MODELS}policy.py", f"{ALGORITHM}marble.py"
GUARDS = "tests/algorithm/test_guards.py::"
FORWARD_KL = "tests/algorithm/test_kl_states.py::test_the_forward_kls_gradient_is_that_of_autograd_and_changes_no_rewards"
ADVANTAGES = f"{ALGORITHM}advantages.py"

SABOTAGES = (
    # those that were found to pass every test
    ("the EMA's weights swapped", POLICY, "[name].mul_(decay).add_(p, alpha=1 - decay)", "[name].mul_(1 - decay).add_(p, alpha=decay)", UPDATES),
    ("old's weights swapped", POLICY, "old[name].mul_(eta).add_(p, alpha=1 - eta)", "old[name].mul_(1 - eta).add_(p, alpha=eta)", UPDATES),
    ("the rollout drawn by default", f"{MODELS}rollout.py", 'policy.merged("old")', 'policy.merged("default")', ROLLOUT),
    ("the KL's scale without 1 / taken", PAIRS, "scale = 1 / taken if", "scale = 1 / (N * config.timesteps) if", MARBLE),
    ("one prompt's conditioning for all in the loss", "marble_core/types.py", "return self.batch.prompt_N[index_B] - self.batch.prompt_N[self.first]", "return 0 * self.batch.prompt_N[index_B]", MARBLE),
    ("prompts in another order while sampling", f"{MODELS}sampling.py", "torch.as_tensor(owner_N[part])", "torch.as_tensor(owner_N[::-1][part].copy())", ROLLOUT),
    ("x_t from t and 1 - t swapped", f"{ALGORITHM}losses.py", "return (1 - t) * x0_BCHW + t * eps_BCHW", "return t * x0_BCHW + (1 - t) * eps_BCHW", MARBLE),
    ("times with replacement", PAIRS, "return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count]", "return torch.randint(size, (count,), generator=torch.Generator().manual_seed(seed))", MARBLE),
    ("no clamp in the step", "marble_core/step.py", "= raw.clamped(config.loss.advantage_max)", "= raw, raw.clamped(config.loss.advantage_max)[1]", MARBLE),
    ("no clipping of the gradient", POLICY, "(default.values(), config.clip_norm)", "(default.values(), 1e30)", MARBLE),
    ("weighted_sum adds the rewards", ADVANTAGES, "_centre_and_scale(_mean(whole_NK)[:, None]", "_centre_and_scale(np.nansum(whole_NK, 1)[:, None]", f"{BASE}test_weighted_sum_is_the_advantage_of_the_mean_of_the_raw_rewards"),
    ("gdpo by the step's std", ADVANTAGES, 'whole_NK, group_N, "group"), np.nan', "whole_NK, group_N, std), np.nan", f"{BASE}test_gdpo_is_the_mean_of_the_group_advantages_whitened_over_the_step"),
    ("gdpo without whitening", ADVANTAGES, "(np.nanstd(mixed_N) + EPSILON)", "1.0", GDPO),
    ("a mixed advantage of an image that lacks a value", ADVANTAGES, "np.where(found.whole_N[:, None], table.R_NK, np.nan)", "table.R_NK", "tests/algorithm/test_missing_values.py::test_a_mixed_advantage_is_made_of_images_that_lack_nothing"),
    ("n_k counts images without a value", f"{ALGORITHM}advantages.py", "return self.mask_NK.sum(0)", "return (self.mask_NK | (self.missing_NK if self.missing_NK is not None else False)).sum(0)", "tests/algorithm/test_missing_values.py::test_a_gradient_is_the_mean_over_the_images_that_have_a_value"),
    ("held-out weights from the whole step", f"{ALGORITHM}metrics.py", "balancer.rethink(G_KK, balance)", "balancer.rethink(stats.G_KK, balance)", MARBLE),
    ("held-out weights from the half they are held against", f"{ALGORITHM}split_half.py", "_cosines_between(weigh(own), own", "_cosines_between(weigh(other), own", MARBLE),
    ("gram: cross without its floor", BALANCE, "(config.cross_floor * norm_K) ** 2", "(1e-9 * norm_K) ** 2", CROSS),
    ("gram: cross without its average", BALANCE, "halves.cross, both, config.cross_rho)", "halves.cross, both, 0.0)", CROSS),
    ("gram: cross without its ridge", BALANCE, "config.cross_ridge * np.diag(active)", "0.0 * np.diag(active)", CROSS),
    ("kappa between 0 and 1 without effect", BALANCE, "(1 - self.config.kappa) * self.prior_K + kept", "kept if self.config.kappa else self.prior_K", f"{RULE}test_kappa_is_the_share_of_the_balanced_weights_and_the_rest_is_the_priors"),
    ("a solver of order 1", f"{MODELS}sampling.py", "solver_order=2", "solver_order=1", ROLLOUT),
    # more of the kind
    ("a mean over all images instead of those that a reward applies to", PAIRS, "advantages.mask_NK / np.maximum(advantages.count_K, 1)", "advantages.mask_NK / len(advantages.A_N)", f"{BASE}test_every_row_is_a_mean_over_the_images_that_its_reward_applies_to"),
    ("groups by prompt, not by text", "marble_core/types.py", "return np.array([texts.index(text) for text in texts])[self.prompt_N]", "return np.arange(len(texts))[self.prompt_N]", "tests/algorithm/test_split_half.py::test_prompts_of_the_same_text_are_one_group_and_stay_in_one_half"),
    ("times shared by all images", PAIRS, 'derive(seed, "times", step, image)', 'derive(seed, "times", step, 0)', MARBLE),
    ("one noise for an image's times", PAIRS, 'derive(seed, "eps", step, i, j)', 'derive(seed, "eps", step, i, 0)', MARBLE),
    ("the same noise in each step", f"{MODELS}rollout.py", '"rollout", batch.step, i', '"rollout", 0, i', MARBLE),
    ("the KL towards old", PAIRS, 'policy.using("off") as model:', 'policy.using("old") as model:', MARBLE),
    ("the KL twice", f"{ALGORITHM}losses.py", "return (2 / v_BCHW[0].numel())", "return (4 / v_BCHW[0].numel())", MARBLE),
    ("one carrier of the KL less", PAIRS, "math.ceil(config.kl_fraction * starts * T)", "math.floor(config.kl_fraction * starts * T)", MARBLE),
    ("L- read as L+", f"{ALGORITHM}losses.py", "scaled_error(at.v_old_BCHW - step)", "scaled_error(at.v_old_BCHW + step)", MARBLE),
    ("the common part of the loss left out", f"{ALGORITHM}losses.py", "config.advantage_max / at.size) * (plus - minus)", "0.0 / at.size) * (plus - minus)", MARBLE),
    ("eta without its cap", POLICY, "min(config.eta_rate * finished, config.eta_max)", "config.eta_rate * finished", UPDATES),
    ("eta one step ahead", POLICY, "config.eta_rate * finished,", "config.eta_rate * (finished + 1),", UPDATES),
    ("the EMA without warm-up", POLICY, "min(config.ema, (1 + finished) / (10 + finished))", "config.ema", UPDATES),
    ("old taken before the step", POLICY, "        optimizer.step()\n", "        before = {n: p.clone() for n, p in default.items()}\n        optimizer.step()\n        [old[n].copy_(b) for n, b in before.items()]\n", UPDATES),
    ("weights without the mean norm", BALANCE, "alpha_K * unit_K[active].mean() /", "alpha_K /", f"{BASE}test_marble_is_the_same_of_unit_gradients_at_the_mean_length"),
    ("alpha's first value blended with 0", BALANCE, "np.where(np.isnan(old), new,", "np.where(np.isnan(old), (1 - rho) * new,", MARBLE + "||" + f"{RULE}test_between_two_qps_weights_are_the_average_on_averaged_lengths"),
    ("norms not averaged between QPs", BALANCE, "self.memory.norm_K = _blend(self.memory.norm_K, unit_K, active, self.config.rho)", "self.memory.norm_K = _blend(self.memory.norm_K, unit_K, active, 0.0)", f"{RULE}test_between_two_qps_weights_are_the_average_on_averaged_lengths"),
    ("mgda normalises", BALANCE, 'self.normalise = config.method == "marble"', "self.normalise = True", f"{BASE}test_mgda_is_the_min_norm_point_of_the_gradients_as_they_are"),
    ("marble does not", BALANCE, 'self.normalise = config.method == "marble"', "self.normalise = False", f"{BASE}test_marble_is_the_same_of_unit_gradients_at_the_mean_length"),
    ("no reward is ever dead", BALANCE, "norm_K > self.config.dead_norm * np.median(norm_K[active])", "norm_K > 0", f"{RULE}test_a_reward_is_dead_below_a_millionth_of_the_median_length"),
    ("the sample's std", ADVANTAGES, "sigma[:] = np.nanstd(R_NK, 0)", "sigma[:] = np.nanstd(R_NK, 0, ddof=1)", MARBLE),
    ("1e-4 beside the std is 1e-2", ADVANTAGES, "EPSILON = 1e-4", "EPSILON = 1e-2", MARBLE),
    ("halves that ignore sources", f"{ALGORITHM}split_half.py", "source = batch.prompts[m].source", 'source = ""', "tests/algorithm/test_split_half.py::test_two_sources_in_turn_are_split_each_for_itself"),
    ("mgda's gradients not scaled", f"{ALGORITHM}min_norm.py", "s_K = _scales(np.diag(G_KK))", "s_K = np.ones(size)", "tests/algorithm/test_min_norm.py::test_the_direction_is_exact_at_any_ratio_of_norms"),
    ("metrics after the weights have moved", "marble_core/step.py", "    metrics, odd = step_metrics(table, batch, update, balancer)\n\n    learner.updating = True\n    norm = policy.update(learner.optimizer, update.gradient, learner.updates, config.optimizer)\n", "    learner.updating = True\n    norm = policy.update(learner.optimizer, update.gradient, learner.updates, config.optimizer)\n    metrics, odd = step_metrics(table, batch, update, balancer)\n", "tests/test_step.py::test_a_number_that_is_only_logged_cannot_end_a_step"),
    ("a guard that may lose all", f"{ALGORITHM}guards.py", "tau_H * np.minimum(lost_H, 0.0) - lost_H", "np.minimum(lost_H, 0.0) - lost_H", f"{GUARDS}test_a_guard_loses_its_part_of_what_it_would_and_the_others_keep_their_weights"),
    ("a guard pushed the other way", f"{ALGORITHM}guards.py", "pushed_K[on] = least_push(", "pushed_K[on] = -least_push(", f"{GUARDS}test_a_guard_loses_its_part_of_what_it_would_and_the_others_keep_their_weights"),
    ("the forward KL at images of the policy", PAIRS, "x0_base = rollout.base.x0_NCHW[to_device(rows_B, device)]", "x0_base = x0", FORWARD_KL),
    ("the KL's weight by time without its scale", PAIRS, "(1 + config.kl_power) * part.t_B", "part.t_B", FORWARD_KL),
    ("an image among the others of its group", "marble_core/rewards/diversity.py", "/ (len(own) - 1)", "/ len(own)", "tests/rewards/test_diversity.py::test_an_images_diversity_is_its_mean_distance_to_the_others_of_its_group"),
    ("guidance from the prompt's velocity", f"{MODELS}guidance.py", "return empty_BCHW + scale", "return v_BCHW + scale", "tests/models/test_guidance.py::test_guidance_is_that_of_diffusers_own_pipeline"),
    ("times below the last never drawn", PAIRS, "share * (t_S - next_S)[drawn]", "share * (t_S - next_S)[drawn] * (next_S[drawn] > 0)", "tests/algorithm/test_gradients.py::test_training_times_between_the_solvers_reach_below_its_last"),
)  # fmt: skip


def sabotaged(file: str, old: str, new: str) -> str:
    code = (ROOT / file).read_text(encoding="utf-8")
    assert code.count(old) == 1, f"{file} has {code.count(old)} times: {old}"
    return code.replace(old, new)


def main() -> None:
    wanted = [row for row in SABOTAGES if all(word in row[0] for word in sys.argv[1:])]
    changed = [sabotaged(file, old, new) for _, file, old, new, _ in wanted]
    warm()
    missed = []
    for (what, file, _, _, tests), code in zip(wanted, changed, strict=True):
        done = outcome(file, code, tuple(tests.split("||")), only="")
        fails = done.killed and any(done.by.startswith(test) for test in tests.split("||"))
        print(f"| {what} | `{done.by or 'NO TEST FAILS'}` |", flush=True)
        if not fails:
            missed.append(what)
    print(
        f"{len(wanted) - len(missed)} of {len(wanted)} sabotages fail their test{': not ' if missed else ''}{', '.join(missed)}"
    )
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
