"""The evaluation: base, champion and trained LoRA draw the same held-out prompts from the same noise, and are scored alike."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import EVALUATION, IMAGES, TIMING
from marble_core.evaluation import lacking
from marble_core.evaluation.evaluator import Evaluator
from marble_core.evaluation.results import Evaluation, Incumbent
from marble_core.evaluation.roles import BASE, CHAMPION, TRAINED, Role, asks_for_guidance, variants_of
from marble_core.evaluation.settings import file_sha256, settings_of
from marble_core.evaluation.shared_roles import SharedRoles
from marble_core.evaluation.statistics import alarms
from marble_core.types import MarbleError, Prompt, RewardTable

if TYPE_CHECKING:
    from marble_core.models.policy import Policy


def run_evaluation(
    config: RunConfig,
    prompts: Sequence[Prompt],
    adapter: Path,
    out: Path,
    incumbent: Incumbent | None = None,
    shared: SharedRoles | None = None,
) -> Evaluation:
    """Sample the models on the same prompts with the same noise, score them, and write the result under ``out``.

    The noise of prompt i depends on (evaluation.seed, i) alone. Of several processes, which share the prompts, the first writes, and
    all return the same; they have no ``shared``. Written are ``evaluation.json`` and ``images/`` (see results.py),
    with images of the first 48 prompts of each source, and ``timing.json``; evaluation.json comes last. Raises MarbleError for a LoRA that is not the
    base's, and for an image that is not finite; a reward that fails costs the values of its images; a champion that does not fit
    the base is left out, and the result says so. With ``shared`` base and guided base are sampled only where no evaluation has done
    it there before.
    """
    from marble_core.models.guidance import why_unguided
    from marble_core.models.policy import Policy
    from marble_core.rewards.registry import load_scorers
    from marble_core.runtime import distributed

    assert config.evaluation.batch_size, "resolve_batch_sizes comes first"
    assert shared is None or distributed.world() == 1
    policy = Policy.load(config)
    policy.load_adapter(adapter, config.lora.rank)
    incumbent = loaded(policy, incumbent or Incumbent())
    reason = why_unguided(policy.model)
    work = Evaluator(
        config,
        prompts,
        load_scorers(config.measured, config.model.offloads_scorers),
        Path(out) / IMAGES,
        [BASE, *([CHAMPION] if incumbent.adapter else []), TRAINED],
        variants_of(config.evaluation.roles, reason),
    )
    began = time.monotonic()
    sampled = {role.name: work.sampled(role, policy, shared) for role in work.all_roles}
    took = {"seconds": time.monotonic() - began, "images": work.total, "roles": len(work.all_roles), "varied": len(work.varied)}

    def concluded() -> Evaluation:
        (Path(out) / TIMING).write_text(json.dumps(took), encoding="utf-8")
        evaluation = work.evaluation(sampled)
        evaluation = replace(evaluation, champion_version=incumbent.version, no_champion=incumbent.absent, no_guidance=reason)
        if reason and asks_for_guidance(config.evaluation.roles):
            evaluation = replace(evaluation, notes=(*evaluation.notes, f"No model was evaluated under guidance: {reason}."))
        settings = settings_of(config, prompts, Path(adapter), work.scorers, policy.model)
        said = (*alarms(evaluation), *lacking.alarms(evaluation.lacking, config.measured))
        evaluation = replace(evaluation, alarms=said, settings=settings)
        evaluation.save(Path(out) / EVALUATION)
        return evaluation

    return distributed.on_main(concluded)


def measure(
    config: RunConfig, prompts: Sequence[Prompt], adapters: Mapping[str, Path], out: Path
) -> tuple[dict[str, RewardTable], dict[str, Any]]:
    """The rewards of the base, of each LoRA, whoever made it, by its name, and of ``evaluation.roles`` of each; and the settings.

    All draw the same prompts from the same noise, as in run_evaluation. ``images/`` is written under ``out``, images by the names.
    A LoRA that is not the base's is refused before anything is sampled.
    """
    from marble_core.models.guidance import why_unguided
    from marble_core.models.policy import Policy
    from marble_core.rewards.registry import load_scorers

    policy = Policy.load(config)
    given = [Role(name, f"given{n}") for n, name in enumerate(adapters)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what is wanted
        for role in given:
            policy.load_adapter(adapters[role.name], name=role.adapter)
    scorers = load_scorers(config.measured, config.model.offloads_scorers)
    variants = variants_of(config.evaluation.roles, why_unguided(policy.model))
    roles = [BASE, *(v for v in variants if v.is_free_of_training)]
    for role in given:
        roles += [role, *(v.of(role) for v in variants if not v.is_free_of_training)]
    work = Evaluator(config, prompts, scorers, Path(out) / IMAGES, roles, kept=(BASE, *given))
    tables = {role.name: work.score(role, policy) for role in roles}
    work.write_scores(tables)
    settings = settings_of(config, prompts, None, scorers, policy.model)
    return tables, settings | {"adapters_sha256": {name: file_sha256(place) for name, place in adapters.items()}}


def loaded(policy: Policy, incumbent: Incumbent) -> Incumbent:
    """The champion's LoRA as the adapter ``champion``; or none, where it does not fit this base model."""
    if incumbent.adapter is not None:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two adapters are what is wanted
                policy.load_adapter(incumbent.adapter, name="champion")
        except MarbleError as error:
            return Incumbent(
                incumbent.version, absent=f"The champion, version {incumbent.version}, is not compared with: {error}"
            )
    return incumbent
