"""Earlier runs of the same experiment, as MLflow remembers them: what a new result is held against."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, nan
from typing import TYPE_CHECKING

from marble_core.evaluation.results import Evaluation, Votes
from marble_core.tracking.champion import named

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MOST = 12
MEAN_GAIN = "evaluation/mean_gain"
REHEARSAL_TAG = "marble.rehearsal"  # on the MLflow run of a rehearsal, which is no result


@dataclass(frozen=True)
class PastRun:
    """A finished run. ``gain`` is (mean, low, high) in base stds; ``base`` and ``trained`` are means by reward."""

    name: str
    day: str
    method: str
    decision: str
    gain: tuple[float, ...]
    base: Mapping[str, float]
    trained: Mapping[str, float]
    version: str = ""

    def is_comparable(self, evaluation: Evaluation) -> bool:
        """Whether it was measured on the same prompts and noise: the base then scores the same, to rounding."""
        own = evaluation.measured
        return set(own) <= set(self.base) and all(
            abs(self.base[n] - r.base) <= 1e-3 * r.base_std + 1e-9 for n, r in own.items()
        )


def evaluation_metrics(evaluation: Evaluation) -> dict[str, float]:
    """What a run says of its evaluation in MLflow: evaluation/mean_gain, and of every reward difference, base and trained;
    of the champion what trained has over it."""
    found = {MEAN_GAIN: evaluation.mean_gain.mean}
    found |= {f"evaluation/mean_gain/{end}": getattr(evaluation.mean_gain, end) for end in ("low", "high")}
    for name, result in {**evaluation.measured, **evaluation.side}.items():
        found[f"evaluation/{name}/difference"] = result.difference.mean
        found |= {f"evaluation/{name}/{role}": getattr(result, role) for role in ("base", "trained")}
    if over := evaluation.champion:
        found["evaluation/mean_gain_over_champion"] = over.mean_gain.mean
        found |= {f"evaluation/{name}/over_champion": versus.difference.mean for name, versus in over.rewards.items()}
    if d := evaluation.diversity:
        found["evaluation/diversity_change"] = d.change.mean
        found |= {f"evaluation/diversity_change/{source}": own.change.mean for source, own in d.by_source.items()}
    if t := evaluation.together:
        found |= {"evaluation/all_rise": t.all_rise.mean, "evaluation/none_falls": t.none_falls.mean}
    if evaluation.votes:
        found |= vote_metrics(evaluation.votes)
    for v in evaluation.variants:
        found[f"evaluation/mean_gain/{v.name}"] = v.mean_gain.mean
        if v.diversity:
            found[f"evaluation/diversity_change/{v.name}"] = v.diversity.change.mean
    return found


def vote_metrics(votes: Votes) -> dict[str, float]:
    """evaluation/votes: the share of the blind votes that the trained model won, and the ends of its interval."""
    w = votes.win_rate
    return {"evaluation/votes": w.mean, "evaluation/votes/low": w.low, "evaluation/votes/high": w.high}


def past_runs(client: MlflowClient, experiment_id: str, model: str, but: str) -> list[PastRun]:
    """The newest runs that the gate has decided on, oldest first; the run ``but`` is left out."""
    found = client.search_runs(
        [experiment_id], "tags.`marble.decision` != ''", max_results=MOST + 1, order_by=["start_time DESC"]
    )
    versions = {v.run_id: str(v.version) for v in client.search_model_versions(named(model))}
    runs = [run for run in found if run.info.run_id != but and _counts(run)][:MOST]
    return [_past(run, versions.get(run.info.run_id, "")) for run in reversed(runs)]


def _counts(run: Run) -> bool:
    return isfinite(run.data.metrics.get(MEAN_GAIN, nan)) and REHEARSAL_TAG not in run.data.tags


def _past(run: Run, version: str) -> PastRun:
    metrics = run.data.metrics

    def of(role: str) -> dict[str, float]:
        start, end = "evaluation/", f"/{role}"
        return {
            n.removeprefix(start).removesuffix(end): v for n, v in metrics.items() if n.startswith(start) and n.endswith(end)
        }

    return PastRun(
        run.info.run_name,
        time.strftime("%Y-%m-%d", time.gmtime(run.info.start_time / 1000)),
        run.data.params.get("balance.method", ""),
        run.data.tags["marble.decision"],
        tuple(
            metrics[f"evaluation/mean_gain{end}"] for end in ("", "/low", "/high") if f"evaluation/mean_gain{end}" in metrics
        ),
        of("base"),
        of("trained"),
        version,
    )
