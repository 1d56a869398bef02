"""Several gloo processes against one: the same direction and balance, decisions made together, an end together."""

import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from builders import Channel, SmallModel, learner, prompts, rewards, small_policy, weights
from marble_core.checkpoints import CheckpointStore
from marble_core.runtime import distributed
from marble_core.step import optimizer_step
from marble_core.training import loop
from marble_core.training.watching import Watch
from marble_core.types import MarbleError, Prompt, PromptBatch
from oracles import relative_error
from several_processes import launch

METERS = ("balance={gram: time, trust: auto}", "balance.meter_dimensions=64")
# The last has fewer prompts than four processes, which share their images.
METHODS = ("marble", "weighted_sum", "marble balance.subtract_common=true", "marble rollout.prompts=3")
WATCHED = ("watch.every=1", "watch.images=2", "evaluation.steps=2", "evaluation.resamples=100")
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-9, 1e-7)}  # of the direction; of alpha and the other numbers


def found_direction(method, dtype):
    """Gradient and alpha of a step with ``old`` far behind ``default``, micro-batches across prompts, and KL on some of them."""
    one = learner(f"balance.method={method.split()[0]}", *method.split()[1:], "loss.micro_batch=7", "loss.kl_fraction=0.3")
    one.policy, found = small_policy(one.config, 0.05, SmallModel(dtype)), {}
    one.policy.update = lambda _, gradient, *__: found.update(gradient) or 0.0
    report = optimizer_step(one, prompts())
    assert not report.skipped
    return {"gradient": found, "metrics": dict(report.metrics)}


class OfGroups(Channel):
    """Scores an image by the mean of its group's, which is wrong where a part of the group is elsewhere."""

    groupwise = True

    def score(self, images_NHWC, prompts, group_N):
        own_N = super().score(images_NHWC, prompts)
        return np.array([own * own_N[group_N == group].mean() for own, group in zip(own_N, group_N, strict=True)])


def found_in_groups():
    one = learner(scorers=(OfGroups("clipscore", 0), *rewards()[1:]))
    return dict(optimizer_step(one, prompts()).metrics)


def found_in_time(setting):
    """What the meter in time says in a second step, and what it keeps after it."""
    one = learner(setting, "balance.meter=time", "loss.micro_batch=7", dtype=torch.float64)
    metrics = [optimizer_step(one, prompts()).metrics for _ in range(2)][1]
    kept = {n: m for n, m in metrics.items() if n.startswith(("consistency_time", "cosine/last", "trust/", "alpha/"))}
    return {"metrics": kept, "tensors": {n: t.clone() for n, t in one.meter.tensors().items()}, "state": one.meter.state()}


def everything(directory, store):
    """What one process saw of all claims below."""
    with distributed.processes():
        seen = {(method, dtype): found_direction(method, dtype) for method in METHODS for dtype in TOLERANCE}
        seen |= {setting: found_in_time(setting) for setting in METERS}
        seen["groups"] = found_in_groups()
        faulty = learner()
        if distributed.rank() == distributed.world() - 1:
            faulty.scorers[1].score = lambda images, _: np.full(len(images), np.inf)
        report, before = optimizer_step(faulty, prompts()), weights(learner())
        untouched = all(torch.equal(a, before[n]) for n, a in weights(faulty).items())
        seen["fault"] = {"skipped": report.skipped, "notes": report.notes, "step": faulty.step, "untouched": untouched}
        reports = []
        with distributed.local_main_first():
            checkpoints = CheckpointStore(store, None, "run")
        for steps in (1, 3):  # the second goes on where the first ended
            one = learner(f"train.steps={steps}", "balance.every=2", *WATCHED)
            watch = Watch(
                one.config, prompts()[::10], directory / f"{distributed.rank()}.jsonl"
            )  # three, fewer than four processes
            loop.train(one, prompts(), checkpoints, reports.append, watch)
        seen["run"] = {"weights": weights(one), "reports": len(reports), "looks": watch.record.looks}
        if distributed.rank() == distributed.world() - 1 and distributed.world() <= 3:
            one.scorers[1].score = lambda images, _: np.full(len(images), np.inf)
        one.step += 1
        watch.look(one)
        seen["run"]["after_a_fault"] = len(watch.record.looks)
    torch.save(seen, directory / f"{os.environ['RANK']}.pt")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What every process saw, by the number of processes."""
    by_count = {}
    for count in (1, 2, 4):
        directory = tmp_path_factory.mktemp("seen")
        ended = launch(count, everything, directory, directory / "store")
        assert [p.exitcode for p in ended] == [0] * count
        by_count[count] = [torch.load(directory / f"{r}.pt", weights_only=False) for r in range(count)]
    return by_count


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("method", METHODS)
def test_any_number_of_processes_gives_the_same_direction_and_alpha(seen, method, dtype, count):
    """On four processes a prompt's images lie on two of them; of three prompts process 0 has no image that the reward ocr applies to."""
    what, (of_direction, of_numbers) = (method, dtype), TOLERANCE[dtype]
    alone = seen[1][0][what]
    for one in seen[count]:
        assert relative_error(one[what]["gradient"], alone["gradient"]) < of_direction
        for name, value in alone["metrics"].items():
            if name.startswith(("alpha/", "reward/", "grad_norm/", "consistency/", "cosine/")):
                assert one[what]["metrics"][name] == pytest.approx(value, rel=of_numbers, abs=of_numbers / 10), name
    first, *others = (one[what]["gradient"] for one in seen[count])
    assert all(torch.equal(g, other[n]) for other in others for n, g in first.items()), "to the bit between processes"


@pytest.mark.parametrize("count", [2, 4])
def test_a_reward_of_whole_groups_sees_whole_groups_on_any_number_of_processes(seen, count):
    alone = seen[1][0]["groups"]
    for one in seen[count]:
        for name in ("reward/clipscore/mean", "reward/clipscore/std", "alpha/clipscore"):
            assert one["groups"][name] == pytest.approx(alone[name], rel=1e-4), name


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("setting", METERS)
def test_any_number_of_processes_has_the_same_meter_in_time(seen, setting, count):
    alone, (first, *others) = seen[1][0][setting], [one[setting] for one in seen[count]]
    assert {n.partition("/")[0] for n in first["metrics"]} >= {"consistency_time", "cosine", "alpha"}
    for name, value in alone["metrics"].items():
        assert first["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert relative_error(first["tensors"], alone["tensors"]) < 1e-6
    for other in others:
        assert other["state"] == first["state"] and other["tensors"].keys() == first["tensors"].keys()
        assert all(torch.equal(t, other["tensors"][n]) for n, t in first["tensors"].items()), "to the bit between processes"


@pytest.mark.parametrize("count", [2, 4])
def test_any_number_of_processes_comes_to_the_same_looks(seen, count):
    """On four one has no prompt to look at. On two the last cannot score a further look, which then neither has."""
    (alone,), (first, *others) = ([one["run"] for one in seen[n]] for n in (1, count))
    assert [look.step for look in first["looks"]] == [1, 2, 3] and all(other["looks"] == first["looks"] for other in others)
    for look, expected in zip(first["looks"], alone["looks"], strict=True):
        assert look.metrics() == pytest.approx(expected.metrics(), rel=1e-2, abs=1e-2)
    assert {n: {one["run"]["after_a_fault"] for one in seen[n]} for n in (2, 4)} == {2: {3}, 4: {4}}


@pytest.mark.parametrize("count", [2, 4])
def test_a_fault_on_one_process_skips_the_step_on_all(seen, count):
    for one in seen[count]:
        assert one["fault"]["skipped"] and one["fault"]["step"] == 1 and one["fault"]["untouched"]
        assert "pickscore is not finite for the prompt" in one["fault"]["notes"][0]


@pytest.mark.parametrize("count", [2, 4])
def test_all_processes_go_on_from_the_checkpoint_that_rank_0_wrote(seen, count):
    assert [one["run"]["reports"] for one in seen[count]] == [3] + [0] * (count - 1)
    first, *others = (one["run"]["weights"] for one in seen[count])
    assert all(torch.equal(w, other[n]) for other in others for n, w in first.items())


def end_of_one(directory, how):
    """Process 1 ends while it scores; what the others raise, and when, goes into files."""
    one = learner()
    with distributed.processes(silence=4.0):
        began = time.monotonic()
        optimizer_step(one, prompts())
        if distributed.rank() == 1:
            one.scorers[0].score = lambda *_: os.kill(os.getpid(), how)
        try:
            optimizer_step(one, prompts())
        except MarbleError as error:
            (directory / str(distributed.rank())).write_text(str(error))
            assert time.monotonic() - began < 55  # and not the 60 s of its default
            raise


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_process_that_dies_ends_the_others_with_an_error(tmp_path, how):
    began = time.monotonic()
    ended = launch(3, end_of_one, tmp_path, how, seconds=240, hopeless=1)
    assert time.monotonic() - began < 240
    assert ended[0].exitcode == ended[2].exitcode == 1
    if how == signal.SIGKILL:
        assert "because another one ended or hung" in (tmp_path / "0").read_text()


@pytest.mark.parametrize(("together", "sizes"), [(False, {5, 6}), (True, {3, 6})])
def test_shares_are_even_by_images_and_by_whole_prompts_where_those_are_scored_together(monkeypatch, together, sizes):
    batch = PromptBatch(tuple(Prompt(str(m), "general") for m in range(7)), 3, 0, 0, together)
    monkeypatch.setattr(distributed, "world", lambda: 4)
    shares = []
    for rank in range(4):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.images_of(batch).tolist())
    assert [i for share in shares for i in share] == list(range(21)) and {len(share) for share in shares} == sizes
    for m in range(7):
        assert distributed.ranks_of(batch, m) == [r for r, share in enumerate(shares) if {i // 3 for i in share} & {m}]


def test_a_prompt_s_images_are_shared_where_there_are_more_processes_than_prompts_and_too_many_are_an_error(monkeypatch):
    batch = PromptBatch(tuple(Prompt(str(m), "general") for m in range(2)), 3, 0, 0)
    monkeypatch.setattr(distributed, "world", lambda: 6)
    assert [distributed.ranks_of(batch, m) for m in range(2)] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(MarbleError, match="2 prompts, each scored as one group, cannot be shared by 6 processes"):
        distributed.images_of(replace(batch, together=True))
    monkeypatch.setattr(distributed, "world", lambda: 7)
    with pytest.raises(MarbleError, match="A step of 6 images cannot be shared by 7 processes"):
        distributed.images_of(batch)
