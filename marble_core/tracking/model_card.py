"""What people read of a registered model: its description in MLflow, and the model card, with images, among its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from marble_core.config.families import guided_call
from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import SCORES
from marble_core.evaluation.gate import Decision
from marble_core.evaluation.results import ROLES, Estimate, Evaluation
from marble_core.evaluation.statistics import interval
from marble_core.evaluation.variants import recommended
from marble_core.storage.catalogue import assets_of
from marble_core.types import Cards, in_order, without_secrets

EXAMPLES = 2  # prompts of a source


def describe(evaluation: Evaluation, decision: Decision) -> str:
    """Decision, reasons, the table of rewards and how they were measured, as Markdown for MLflow's pages."""
    lines = [f"**{decision.summary[0].upper()}{decision.summary[1:]}.** {' '.join(decision.reasons)}", "", *_table(evaluation)]
    if s := evaluation.settings:
        how = f"{s.get('solver')}, {s.get('steps')} steps, no guidance, noise seed {s.get('noise_seed')}"
        lines += ["", f"Held-out prompts, the same noise for all models ({how}); 95 % intervals of paired differences."]
    return "\n".join(lines)


def write_card(
    directory: Path,
    config: RunConfig,
    evaluation: Evaluation,
    decision: Decision,
    images: Path,
    name: str,
    run_id: str,
    cards: Cards,
) -> None:
    """``README.md`` and ``examples/`` with images of the first prompts of each source, which nobody chose.

    ``images`` is the directory that the evaluation wrote. Everything is copied: no image is decoded.
    """
    rows = _examples(images)
    for row in rows:
        for file in row["pictures"].values():
            (directory / "examples").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(images / file, directory / "examples" / file)
    sections = [
        _front(config),
        f"# {name}\n\n{_summary(config, evaluation, run_id)}",
        f"## Use\n\n{_use(config, evaluation, name)}",
        f"## Results\n\n{describe(evaluation, decision)}",
        *([f"## Examples\n\nThe first held-out prompts of each source, not chosen.\n\n{_gallery(rows)}"] if rows else []),
        f"## Training\n\n{_training(config, evaluation)}",
        f"## Licences\n\n{_licences(config, cards)}",
    ]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "README.md").write_text(without_secrets("\n\n".join(sections)) + "\n", encoding="utf-8")


def _table(evaluation: Evaluation) -> list[str]:
    over = evaluation.champion
    extra = f" over champion, version {evaluation.champion_version} |" if over else ""
    lines = [
        f"| reward | prompts | base | trained | over base (95 % interval) | wins |{extra}",
        f"|---|---|---|---|---|---|{'---|' * bool(over)}",
    ]
    for n, r in evaluation.measured.items():
        mark = n if n in evaluation.rewards else f"{n} (not trained on)"
        cells = [
            mark,
            str(r.n),
            f"{r.base:.{r.digits}f}",
            f"{r.trained:.{r.digits}f}",
            interval(r.difference, r.digits),
            f"{r.win_rate:.0%}",
        ]
        cells += [interval(over.rewards[n].difference, r.digits)] if over else []
        lines.append(f"| {' | '.join(cells)} |")
    if d := evaluation.diversity:
        lines += [
            "",
            f"Diversity (mean distance of CLIP features between images of one prompt, {d.prompts} prompts): "
            + f"{d.base:.3f} -> {d.trained:.3f}, a change of {_percent(d.change)}.",
        ]
    if v := evaluation.votes:
        lines += ["", f"Of people: {v}."]
    return [*lines, *_variants(evaluation)]


def _variants(evaluation: Evaluation) -> list[str]:
    """What guidance and strength do, and what is recommended of them."""
    lines = [f"No guidance: {evaluation.no_guidance}."] if evaluation.no_guidance else []
    if evaluation.strength != 1:
        lines += [
            f"These weights have the factor {evaluation.strength:g} folded in, the strongest that keeps enough of the base's diversity. "
            + "Strengths in this card are of the LoRA as it was trained.",
            "",
        ]
    if evaluation.variants:
        lines += [
            "| model | guidance | strength | mean gain over the base, its stds | diversity |",
            "|---|---|---|---|---|",
            *(
                f"| {v.model} | {v.guidance:g} | {f'{v.strength:g}' if v.model == 'trained' else ''} | {interval(v.mean_gain)} | "
                f"{_percent(v.diversity.change) if v.diversity else ''} |"
                for v in evaluation.variants
            ),
        ]
    return ["", *lines] if lines else []


def _recommendation(evaluation: Evaluation) -> str:
    """The pair of guidance and strength, where others than the plain one were measured."""
    if not any(v.model == "trained" for v in evaluation.variants):
        return ""
    best = recommended(evaluation)
    kept = f", diversity {_percent(best.diversity)}" if best.diversity else ""
    why = "the greatest mean gain of those that keep four fifths of the base's diversity"
    if not best.keeps:
        why = "the one that keeps most diversity, for none keeps four fifths of the base's"
    return (
        f"Recommended: guidance {best.guidance:g} at strength {best.strength:g}, {why}: mean gain {interval(best.mean_gain)} base "
        f"standard deviations{kept}. It was chosen on the prompts that it was measured on, so expect a little less."
    )


def _percent(change: Estimate) -> str:
    return f"{100 * change.mean:+.0f} % ({100 * change.low:+.0f} to {100 * change.high:+.0f})"


def _front(config: RunConfig) -> str:
    """The metadata that model hubs read. JSON is YAML, and quotes what must be quoted."""
    facts = {"base_model": config.model.path, "library_name": "diffusers", "pipeline_tag": "text-to-image"}
    return "\n".join(
        ["---", *(f"{key}: {json.dumps(value)}" for key, value in facts.items()), 'tags: ["lora", "marble"]', "---"]
    )


def _summary(config: RunConfig, evaluation: Evaluation, run_id: str) -> str:
    revision = evaluation.settings.get("revision")  # the evaluation had the base's files, and knows the commit
    base = config.model.path + (f" at revision {revision}" if revision else "")
    shared = [name for name in config.reward_names if name not in config.balance.guards]
    guarded = f", with {', '.join(config.balance.guards)} as guard" if config.balance.guards else ""
    return (
        f"A LoRA of rank {config.lora.rank} (trained with alpha {config.lora.alpha}, which is folded into the weights) for {base}, "
        + f"fine-tuned by MARBLE on {', '.join(shared)} at once{guarded}. MLflow run {run_id}, configuration {config.digest}."
    )


def _use(config: RunConfig, evaluation: Evaluation, name: str) -> str:
    revision = f", revision={config.model.revision!r}" if config.model.revision else ""
    said, best = _recommendation(evaluation), recommended(evaluation)
    scale = best.guidance if said and best.guidance != 1 else evaluation.settings.get("guidance_scale", 1.0)
    weight = best.strength / evaluation.strength  # a strength of the LoRA as trained, of weights with another one in them
    strength = [f'pipe.set_adapters(["marble"], [{weight:g}])'] if said and weight != 1 else []
    return "\n".join(
        [
            *([said, ""] if said else []),
            "```python",
            "import mlflow",
            "from diffusers import DiffusionPipeline",
            "",
            f"pipe = DiffusionPipeline.from_pretrained({config.model.path!r}{revision})",
            f'lora = mlflow.artifacts.download_artifacts("models:/{name}@champion") + "/adapter_weights"',
            'pipe.load_lora_weights(lora, adapter_name="marble")',
            *strength,
            f'pipe("a red circle", {guided_call(config.model.family, scale)}, num_inference_steps={config.evaluation.steps})',
            "```",
            "",
            f'or `mlflow.diffusers.load_model("models:/{name}@champion").load_pipeline()`.',
        ]
    )


def _gallery(rows: Sequence[Mapping[str, Any]]) -> str:
    roles = [role for role in ROLES if role in rows[0]["pictures"]]
    lines = [f"| prompt | {' | '.join(roles)} |", f"|---|{'---|' * len(roles)}"]
    for row in rows:
        pictures = [f"![{role}](examples/{row['pictures'][role]})" for role in roles]
        lines.append(f"| {_plain(row['prompt'])} | {' | '.join(pictures)} |")
    return "\n".join(lines)


def _training(config: RunConfig, evaluation: Evaluation) -> str:
    held_out = ", ".join(f"{n} {source}" for source, n in evaluation.settings.get("prompts", {}).items())
    step = f"{config.rollout.prompts} prompts x {config.rollout.images_per_prompt} images per step"
    lines = [
        f"- method: {config.balance.method}, {config.train.steps} steps, {step}, learning rate {config.optimizer.lr:g}, "
        + f"seed {config.seed}",
        f"- prompts to train on: {', '.join(f'{source} from {uri}' for source, uri in config.data.train.items())}",
        f"- held-out prompts: {', '.join(f'{source} from {uri}' for source, uri in config.data.evaluation.items())} ({held_out})",
    ]
    lines += [f"- started from {config.train.start_from}"] if config.train.start_from else []
    return "\n".join(lines)


def _licences(config: RunConfig, cards: Cards) -> str:
    """Of everything that the run read; the LoRA's own use is bound by the base model's."""
    lines = ["| what | for | licence |", "|---|---|---|"]
    for asset in assets_of(config, cards):
        known = asset.known
        lines.append(f"| {asset.uri} | {', '.join(asset.users)} | {known.licence}{known.note and '; '}{known.note} |")
    return "\n".join(lines)


def _examples(images: Path) -> list[dict[str, Any]]:
    lines = (images / SCORES).read_text(encoding="utf-8").splitlines() if (images / SCORES).is_file() else []
    rows = [row for line in lines if "pictures" in (row := json.loads(line))]
    return [
        row for source in in_order(r["source"] for r in rows) for row in [r for r in rows if r["source"] == source][:EXAMPLES]
    ]


def _plain(text: str) -> str:
    """In a cell of a Markdown table, whatever a prompt holds."""
    for mark in "\\`*_{}[]<>|!":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
