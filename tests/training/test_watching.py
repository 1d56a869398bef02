"""Watching changes nothing of a training, sees its average, and ends it where it should."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from builders import Channel, learner, prompts, rewards, weights
from marble_core.algorithm.learner import Learner
from marble_core.checkpoints import CheckpointStore
from marble_core.config.stage_files import WATCH
from marble_core.evaluation.watch import Look, Record
from marble_core.runtime.sigterm import Terminated
from marble_core.step import optimizer_step
from marble_core.training import loop
from marble_core.training.watching import Watch
from marble_core.types import MarbleError, Prompt

WATCHED = [Prompt(f"{source} watched {n}", source) for source in ("general", "ocr", "geneval") for n in range(4)]
SETTINGS = ("evaluation.steps=2", "evaluation.resamples=100", "watch.images=2", "train.steps=4")


class Gambler(Channel):
    """Draws from every global generator, as somebody's scorer may."""

    def score(self, images_NHWC, prompts):  # type: ignore[no-untyped-def]
        random.random(), np.random.random(), torch.rand(1)
        return super().score(images_NHWC, prompts)


def a_learner(*overrides: str, **how: object) -> Learner:
    return learner(*SETTINGS, *overrides, **how)


def store(path: Path) -> CheckpointStore:
    return CheckpointStore(path / "checkpoints", None, "run")


def trained(path: Path, *overrides: str, report=lambda _: None, **how: object) -> tuple[Learner, Record]:  # type: ignore[no-untyped-def]
    """Goes on where ``path`` holds a run."""
    one = a_learner(*overrides, **how)
    loop.train(one, prompts(), store(path), report, Watch(one.config, WATCHED, path / WATCH))
    return one, Record.load(path / WATCH)


def everything(one: Learner) -> list[torch.Tensor]:
    moments = [value for p in weights(one) for value in one.optimizer.state[one.policy.parameters_of("default")[p]].values()]
    old = one.policy.parameters_of("old").values()
    return [*weights(one).values(), *(p.detach() for p in old), *one.policy.ema.values(), *moments]


def numbers(one: Learner) -> list[dict[str, float]]:
    return [{n: v for n, v in line["metrics"].items() if not n.startswith(("time/", "images_per"))} for line in one.history]


def same(a: Learner, b: Learner) -> bool:
    return all(torch.equal(x, y) for x, y in zip(everything(a), everything(b), strict=True)) and repr(numbers(a)) == repr(
        numbers(b)
    )


def borrowed(one: Learner) -> bool:
    """Whether the EMA is in the place of ``default``."""
    average = {p.data_ptr() for p in one.policy.ema.values()}
    return all(p.data_ptr() in average for p in one.policy.parameters_of("default").values())


@pytest.mark.parametrize("settings", [(), ("watch.on_alarm=stop", "watch.range=1e9", "train.keep_best=false")])
def test_a_training_that_is_watched_is_the_one_that_is_not_to_the_bit(settings: tuple[str, ...], tmp_path: Path) -> None:
    scorers = (Gambler("clipscore", 0), Gambler("pickscore", 1), Gambler("ocr", 2, "ocr"))
    torch.manual_seed(5)
    blind, nothing = trained(tmp_path / "blind", "watch.every=0", scorers=scorers)
    torch.manual_seed(5)
    trusting = ("watch.trusted=[clipscore]", "watch.witnesses=[]") if settings else ()
    watched, record = trained(tmp_path / "watched", "watch.every=1", *settings, *trusting, scorers=scorers)
    assert not nothing.looks and [look.step for look in record.looks] == [1, 2, 3, 4]
    assert same(blind, watched)


def test_global_generators_are_where_a_training_without_looks_leaves_them(tmp_path: Path) -> None:
    states = []
    for every in (0, 1):
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        trained(tmp_path / str(every), f"watch.every={every}")
        states.append((torch.rand(1).item(), np.random.random(), random.random()))
    assert states[0] == states[1]


def test_a_look_before_any_training_finds_nothing_and_a_later_one_sees_the_average(tmp_path: Path) -> None:
    one = a_learner("watch.every=1")
    watch = Watch(one.config, WATCHED)
    watch.look(one)
    (first,) = watch.record.looks
    assert {(r.difference.low, r.difference.high) for r in (*first.rewards.values(), *first.witnesses.values())} == {(0.0, 0.0)}
    for _ in range(2):
        optimizer_step(one, prompts())
    before = weights(one)
    watch.look(one)
    seen = watch.record.looks[-1]
    assert all(torch.equal(p, before[n]) for n, p in weights(one).items()), "what was borrowed is back"
    with torch.no_grad():
        for n, p in one.policy.parameters_of("default").items():
            p.copy_(one.policy.ema[n])
    one.step += 1
    watch.look(one)
    assert watch.record.looks[-1].rewards == seen.rewards and seen.rewards["clipscore"].difference.mean != 0
    assert seen.rewards["ocr"].n == 4 and set(seen.ties) == {"clipscore", "pickscore", "ocr"}


def test_a_run_that_is_stopped_anywhere_leaves_the_record_of_one_that_was_not(tmp_path: Path) -> None:
    whole, record = trained(tmp_path / "whole", "watch.every=1", "train.checkpoint_every=2")

    def after_three(report) -> None:  # type: ignore[no-untyped-def]
        if report.step == 3:  # the look after step 3 is lost, and the one after step 2 is in the checkpoint
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", "watch.every=1", "train.checkpoint_every=2", report=after_three)
    assert [look.step for look in Record.load(tmp_path / "parts" / WATCH).looks] == [1, 2]
    again, _ = trained(tmp_path / "parts", "watch.every=1", "train.checkpoint_every=2")
    assert same(whole, again) and len(record.looks) == 4
    assert (tmp_path / "parts" / WATCH).read_bytes() == (tmp_path / "whole" / WATCH).read_bytes()
    elsewhere = Record.load(store(tmp_path / "whole").fetch(str(store(tmp_path / "whole").newest())) / WATCH)
    assert elsewhere.looks == record.looks, "a checkpoint carries it to another machine"


def test_a_termination_in_the_middle_of_a_look_saves_the_training_as_it_was(tmp_path: Path) -> None:
    whole, record = trained(tmp_path / "whole", "watch.every=2")
    one = a_learner("watch.every=2", "train.checkpoint_every=9")
    decode = one.policy.model.decode

    def ends(x0_NCHW: torch.Tensor) -> np.ndarray:
        if borrowed(one):
            raise Terminated
        return decode(x0_NCHW)

    one.policy.model.decode = ends
    with pytest.raises(Terminated):
        loop.train(one, prompts(), store(tmp_path / "parts"), lambda _: None, Watch(one.config, WATCHED))
    assert one.step == 2
    resumed, again = trained(tmp_path / "parts", "watch.every=2")
    assert same(whole, resumed) and again.looks == record.looks


class Steered(Channel):
    """Adds to what it gives the average's images of watched prompts, by the learner's step."""

    one: Learner
    bonus: dict[int, float]
    looks = False  # rather than at the base, which comes before

    def steer(self, one: Learner, bonus: dict[int, float]) -> None:
        self.one, self.bonus, averaged = one, bonus, one.policy.averaged

        def seen():  # type: ignore[no-untyped-def]
            self.looks = True
            return averaged()

        one.policy.averaged = seen  # type: ignore[method-assign]

    def score(self, images_NHWC, prompts):  # type: ignore[no-untyped-def]
        watched = self.looks and "watched" in prompts[0].text
        return super().score(images_NHWC, prompts) + (self.bonus.get(self.one.step, 0.0) if watched else 0.0)


def steered(path: Path, bonus: dict[int, float], *overrides: str) -> tuple[Learner, Record]:
    first = Steered("clipscore", 0)
    one = a_learner(
        "watch.every=1", "watch.witnesses=[]", "watch.trusted=[clipscore]", "storage.keep_last=1", *overrides,
        scorers=(first, *rewards()[1:]),
    )  # fmt: skip
    first.steer(one, bonus)
    loop.train(one, prompts(), CheckpointStore(path / "checkpoints", None, "run", one.config.storage), lambda _: None,
               Watch(one.config, WATCHED, path / WATCH))  # fmt: skip
    return one, Record.load(path / WATCH)


@pytest.mark.parametrize("every", [1, 9])
def test_an_alarm_ends_it_at_the_checkpoint_before_and_so_again_where_the_stage_is_started_again(
    every: int, tmp_path: Path
) -> None:
    short, _ = trained(tmp_path / "short", "watch.every=0", "train.steps=2")
    falls, setting = {1: 0.1, 3: -5.0, 4: -5.0}, f"train.checkpoint_every={every}"
    for _ in range(2):
        stopped, record = steered(tmp_path / "stopped", falls, setting, "watch.on_alarm=stop")
        assert [look.hacked for look in record.looks] == [False, False, True]
        assert stopped.step == 2 and len(stopped.history) == 2
        assert all(torch.equal(short.policy.ema[n], p) for n, p in stopped.policy.ema.items())
    warned, record = steered(tmp_path / "warned", falls, setting)
    assert warned.step == 4 and record.first_alarm and record.first_alarm.step == 3


def test_an_alarm_at_the_first_look_ends_it_where_it_began(tmp_path: Path) -> None:
    stopped, record = steered(tmp_path, {1: -5.0}, "watch.on_alarm=stop")
    assert len(record.looks) == 1 and stopped.step == 0 and not stopped.history
    fresh = a_learner()
    assert all(torch.equal(fresh.policy.ema[n], p) for n, p in stopped.policy.ema.items())


def test_keep_best_leaves_the_learner_at_its_best_look_and_its_checkpoint_is_not_pruned(tmp_path: Path) -> None:
    short, _ = trained(tmp_path / "short", "watch.every=0", "train.steps=2")
    gains = {1: 0.1, 2: 5.0, 3: 0.2, 4: 0.1}
    for _ in range(2):
        kept, record = steered(tmp_path / "best", gains, "train.keep_best=true", "train.checkpoint_every=1")
        assert [look.step for look in record.looks] == [1, 2, 3, 4]
        assert kept.step == 2 and [line["step"] for line in kept.history] == [1, 2]
        assert all(torch.equal(short.policy.ema[n], p) for n, p in kept.policy.ema.items())
    last, _ = steered(tmp_path / "last", gains)
    assert last.step == 4
    hacked, record = steered(tmp_path / "hacked", {**gains, 2: -5.0, 3: 5.0}, "train.keep_best=true")
    assert record.looks[1].hacked and hacked.step == 3


def test_a_result_whose_checkpoint_is_gone_is_one_sentence(tmp_path: Path) -> None:
    class Forgets(CheckpointStore):
        def at(self, step: int) -> None:
            return None

    first = Steered("clipscore", 0)
    one = a_learner("watch.every=1", "train.keep_best=true", "watch.trusted=[ocr]", scorers=(first, *rewards()[1:]))
    first.steer(one, {2: 5.0})
    with pytest.raises(MarbleError, match=r"The checkpoint after step 2, the result of this run by its watch, is gone"):
        loop.train(one, prompts(), Forgets(tmp_path, None, "run"), lambda _: None, Watch(one.config, WATCHED))


def test_a_look_that_fails_is_a_sentence_and_the_training_goes_on(tmp_path: Path) -> None:
    class Deaf(Channel):
        def score(self, images_NHWC, prompts):  # type: ignore[no-untyped-def]
            found = super().score(images_NHWC, prompts)
            return np.full(len(found), np.inf) if "watched" in prompts[0].text else found

    said: list[tuple[int, Look | str]] = []
    one = a_learner("watch.every=2", scorers=(rewards()[0], Deaf("pickscore", 1), rewards()[2]))
    loop.train(
        one, prompts(), store(tmp_path), lambda _: None, Watch(one.config, WATCHED, None, lambda *look: said.append(look))
    )
    assert one.step == 4 and [step for step, _ in said] == [2, 4]
    assert said[0][1] == "No look after step 2: the reward 'pickscore' is not finite."


def test_an_image_without_a_value_is_left_out_of_the_base_too(tmp_path: Path) -> None:
    class Gaps(Channel):
        def score(self, images_NHWC, prompts):  # type: ignore[no-untyped-def]
            values = super().score(images_NHWC, prompts)
            return np.where(["watched 0" in p.text for p in prompts], np.nan, values)

    _, record = trained(tmp_path, "watch.every=4", scorers=(rewards()[0], Gaps("pickscore", 1), rewards()[2]))
    (look,) = record.looks
    assert {name: result.n for name, result in look.rewards.items()} == {"clipscore": 12, "pickscore": 9, "ocr": 4}
    assert all(np.isfinite(list(look.metrics().values())))


def test_looks_at_other_prompts_are_kept_apart(tmp_path: Path) -> None:
    trained(tmp_path, "watch.every=1", "train.steps=2")
    one = a_learner("watch.every=1")
    watch = Watch(one.config, WATCHED[:9])
    loop.train(one, prompts(), store(tmp_path), lambda _: None, watch)
    assert [look.step for look in watch.record.looks] == [1, 2, 3, 4]
    assert len({look.of for look in watch.record.looks}) == 2 and len(watch.record.base["reward/clipscore"]) == 9
