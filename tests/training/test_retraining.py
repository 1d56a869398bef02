"""Retraining from the champion: which prompts, which weights, and four rounds of it."""

import json
from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from marble_core import stages
from marble_core.tracking.run_tree import RUN_ID_TAG
from marble_core.training.retraining import choose
from marble_core.types import Prompt


def prompts(source: str, *names: str) -> list[Prompt]:
    return [Prompt(f"{source} {name}", source, {"text": "A"} if source == "ocr" else {}) for name in names]


BEFORE = [*prompts("general", "a", "b", "c", "d"), *prompts("ocr", "a", "b"), *prompts("geneval", "a", "b", "c")]


def counts(chosen: list[Prompt]) -> dict[str, int]:
    return dict(Counter(p.source for p in chosen))


def test_mix_takes_what_is_new_and_fills_every_source_up_to_its_size_of_before() -> None:
    new = prompts("ocr", "x", "y", "z")
    choice = choose("mix", [*BEFORE, *new], BEFORE, BEFORE, (), seed=0)
    assert set(new) <= set(choice.prompts)
    assert counts(choice.prompts) == {"general": 4, "ocr": 3, "geneval": 3}, "ocr had 2, and has 3 new ones"
    assert choice.new == {"general": 0, "ocr": 3, "geneval": 0} and choice.known == {"general": 4, "ocr": 0, "geneval": 3}
    one = choose("mix", prompts("general", "x"), BEFORE, BEFORE, (), seed=0)
    assert counts(one.prompts) == {"general": 4, "ocr": 2, "geneval": 3}, "also where the file has lost the old ones"
    assert one == choose("mix", prompts("general", "x"), BEFORE, BEFORE, (), seed=0)


def test_only_takes_the_new_ones_and_all_takes_what_is_given() -> None:
    new = prompts("ocr", "x")
    assert choose("only", [*BEFORE, *new], BEFORE, BEFORE, (), seed=0).prompts == new
    assert choose("only", BEFORE, BEFORE, BEFORE, (), seed=0).prompts == []
    assert set(choose("all", [*BEFORE[:4], *new], BEFORE, BEFORE, (), seed=0).prompts) == {*BEFORE[:4], *new}
    assert set(choose("mix", BEFORE, BEFORE, BEFORE, (), seed=0).prompts) == set(BEFORE), "nothing new: the old set"


def test_what_an_earlier_champion_was_given_is_not_new() -> None:
    assert choose("only", BEFORE, BEFORE[:3], BEFORE, (), seed=0).prompts == []


def test_a_prompt_that_is_held_out_now_is_not_taken_from_the_champions_set() -> None:
    held_out = prompts("general", "a", "b", "c")
    chosen = choose("mix", prompts("general", "x"), BEFORE, BEFORE, held_out, seed=0).prompts
    assert not {p.text for p in held_out} & {p.text for p in chosen} and Prompt("general d", "general") in chosen


SMALL = [
    "train.steps=4", "train.processes=1", "train.checkpoint_every=4", "rollout.prompts=6", "rollout.images_per_prompt=8", "rollout.steps=3",
    "loss.timesteps=2", "loss.kl_beta=0", "lora.rank=4", "optimizer.lr=1e-3", "train.samples_every=0", "evaluation.steps=3",
    "data.evaluation_size=12", "evaluation.resamples=300", "evaluation.diversity_prompts=0", "registry.model=schedule",
    "train.start_from=champion", "evaluation.rewards=[{name: judge, scorer: 'colour_rewards:Warmth'}]",
]  # fmt: skip


class Round:
    """One round of a schedule through the real stages."""

    def __init__(self, root: Path, run_id: str, *overrides: str, scorer: str = "Warmth") -> None:
        rewards = f"rewards=[{{name: warmth, scorer: 'colour_rewards:{scorer}'}}]"
        self.root, self.run_id = root / run_id, run_id
        prepared, adapter, evaluation = (self.root / name for name in ("prepared", "adapter", "evaluation"))
        form = {"gpus": "0", "evaluation_gpus": "1"}
        self.wanted = stages.prepare("demo", [*SMALL, rewards, *overrides], run_id, prepared, self.root / "data.html", form)
        self.trained = stages.train(prepared, adapter)
        stages.evaluate(prepared, adapter, evaluation, self.root / "report.html")
        self.registered = stages.register(prepared, adapter, evaluation, self.root / "register.html")
        self.outcome, self.version = self.registered.decision.verdict, self.registered.version
        self.reason = " ".join(self.registered.decision.reasons)
        if self.registered.evaluation:
            self.evaluation = self.registered.evaluation
        self.prompts = [json.loads(line) for line in (prepared / "train.jsonl").read_text().splitlines() if line]
        self.config = json.loads((prepared / "config.json").read_text())
        self.champion = MlflowClient().get_model_version_by_alias("schedule", "champion")

    @property
    def tracked(self) -> Run:
        return MlflowClient().search_runs([self.champion_experiment], f"tags.`{RUN_ID_TAG}` = '{self.run_id}'")[0]

    @property
    def champion_experiment(self) -> str:
        return MlflowClient().get_run(self.champion.run_id).info.experiment_id


@pytest.fixture(scope="module")
def rounds(services_of_module: None, tmp_path_factory: pytest.TempPathFactory) -> list[Round]:
    root = tmp_path_factory.mktemp("rounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        one = Round(root, "round-one", "data.train_size=30")
        two = Round(root, "round-two", "data.train_size=60")
        three = Round(root, "round-three", "data.train_size=90", scorer="Broken")
        four = Round(root, "round-four", "data.train_size=60", "data.new_prompts=only")
    return [one, two, three, four]


@pytest.mark.slow
def test_of_four_rounds_the_better_are_promoted_the_broken_is_refused_and_the_last_has_nothing_to_do(
    rounds: list[Round],
) -> None:
    one, two, three, four = rounds
    assert [r.outcome for r in rounds] == ["promoted", "promoted", "worse", "nothing new"]
    assert [r.champion.version for r in rounds] == [one.version, two.version, two.version, two.version]
    assert two.evaluation.champion and two.evaluation.champion.mean_gain.low > 0, (
        "better than round one, not only than the base"
    )
    assert "judge is worse than" in three.reason and three.evaluation.champion
    assert three.evaluation.champion.rewards["warmth"].difference.low > 0, "the broken reward itself rose"
    assert "no prompt is new since the champion" in four.reason and four.tracked.info.status == "FINISHED"
    assert [r.registered.metrics["promoted"] for r in rounds] == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.slow
def test_where_nothing_is_new_no_stage_asks_for_a_gpu_or_makes_anything_and_each_says_so(rounds: list[Round]) -> None:
    _, two, three, four = rounds
    assert two.wanted[1:3] == three.wanted[1:3] == ("0", "1") and four.wanted[1:] == ("0", "0", "1", "2Gi", "1", "2Gi")
    assert four.trained == {} and list((four.root / "adapter").iterdir()) == [] and four.version == ""
    assert four.tracked.data.tags["marble.decision"] == "nothing to train on"
    for page in ("report.html", "register.html"):
        assert "no prompt is new since the champion" in (four.root / page).read_text()
    assert "worse" in (three.root / "register.html").read_text()
    assert f"Version {two.version} of schedule is registered as champion" in (two.root / "register.html").read_text()


@pytest.mark.slow
def test_every_round_says_what_it_came_from_and_what_became_of_it(rounds: list[Round]) -> None:
    one, two, three, four = rounds
    assert one.config["train"]["start_from"] is None, "there was no champion yet"
    assert two.config["train"]["start_from"].startswith("s3://marble/runs/round-one/checkpoints/step-000004")
    assert three.config["train"]["start_from"].startswith("s3://marble/runs/round-two/checkpoints/step-000004")
    assert two.tracked.data.params["train.start_from"] == two.config["train"]["start_from"]
    assert two.champion.tags["marble.previous_champion"] == one.version
    assert (
        three.tracked.data.tags["marble.decision"] == "refused: worse"
        and "refused" in (three.root / "report.html").read_text().lower()
    )
    assert f"version {two.version}" in (three.root / "report.html").read_text()
    texts = [{(p["source"], p["prompt"]) for p in r.prompts} for r in rounds]
    assert len(texts[1] - texts[0]) and Counter(s for s, _ in texts[1]) >= Counter(s for s, _ in texts[0])
    assert not four.prompts
