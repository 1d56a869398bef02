"""Examples that end each command's help. A test runs every line as far as the command line is read."""

from __future__ import annotations

import typer

EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        "marble run",
        "marble run --config marble.yaml --set train.steps=160 --set balance.method=weighted_sum",
        "marble run --run-id nightly-7    # again: goes on from its newest checkpoint, with its own settings",
        "marble run --rehearse --config marble.yaml    # the first thing to do: what the run needs, and how long it takes",
        "marble run --containers    # each stage in its image, as on a cluster",
    ),
    "init": ("marble init", "marble init sd35.yaml --preset demo", "marble init marble.schema.json --schema"),
    "check": ("marble check --config marble.yaml", "marble check --estimate --preset sd35-medium-1gpu-24g"),
    "list": ("marble list presets", "marble list rewards --json"),
    "fetch": ("marble fetch --dry-run", "marble fetch demo"),
    "evaluate": (
        "marble evaluate --published --preset sd35-medium-8gpu --adapter models:/marble@champion",
        "marble evaluate --published --adapter ours=adapter --adapter NFT=hf://worstcoder/SD3.5M-DiffusionNFT-MultiReward",
        "marble evaluate --published --set data.evaluation.ocr=ocr/test.txt --limit 50    # the base alone, a quick look",
    ),
    "compile": (
        "marble compile --registry registry.example/team --tag 0.1.0",
        "marble compile --settings settings.yaml",
        "marble compile --study mine.yaml --output study-pipeline.yaml",
    ),
    "submit": (
        "marble submit --param preset=demo --param steps=40",
        "marble submit pipeline.yaml --run-id first --wait --json    # exit code as of marble runs wait",
        "marble submit --param gpus=8 --max-gpu-hours 400    # refused before it is sent where the estimate is above",
        "marble submit --dry-run",
    ),
    "schedule create": (
        "marble schedule create nightly --cron '0 3 * * *' --param start_from=champion --param new_prompts=mix",
    ),
    "schedule runs": ("marble schedule runs nightly -n 7", "marble schedule runs nightly --json"),
    "schedule list": ("marble schedule list --json",),
    "schedule update": (
        "marble schedule update nightly --cron '0 5 * * 1-5' --param steps=80",
        "marble schedule update nightly --package pipeline.yaml    # what marble compile has written now",
    ),
    "schedule pause": ("marble schedule pause nightly",),
    "schedule resume": ("marble schedule resume nightly",),
    "schedule delete": ("marble schedule delete nightly --dry-run",),
    "runs list": ("marble runs list -n 5", "marble runs list --host http://localhost:8888 --namespace team"),
    "runs show": ("marble runs show 20261124-093000-3fa9c1",),
    "runs cancel": ("marble runs cancel 20261124-093000-3fa9c1",),
    "runs wait": ("marble runs wait 20261124-093000-3fa9c1 --timeout 24h --every 1m",),
    "ui": ("marble ui", "marble ui --port 5000 --open"),
    "bench costs": ("marble bench costs --rounds 2",),
    "bench gpu": ("marble bench gpu --images 9",),
    "bench roofline": ("marble bench roofline --preset sd35-medium-1gpu-24g --gpu RTX4090",),
    "bench signal": (
        "marble bench signal --config docs/studies/signal.yaml --without compressibility",
        "marble bench signal --adapter models:/marble@champion --batches 5 --out .marble/signal-of-the-champion",
    ),
    "study": (
        "marble study docs/studies/hackable.yaml",
        "marble study mine.yaml --jobs 1 --out studies/mine    # again: goes on",
        "marble study mine.yaml --pipeline    # as a cluster would run it",
    ),
    "compare": (
        "marble compare monday tuesday --out week.html",
        "marble compare .marble/studies/hackable/runs/equal/seed-0/step-20 .marble/studies/hackable/runs/marble/seed-0/step-20",
    ),
    "export": (
        "marble export models:/marble@champion --out ComfyUI/models/loras/marble.safetensors",
        "marble export adapter --form peft --out adapter-of-peft",
    ),
    "serve": (
        "marble serve --preset sd35-medium-1gpu-24g --set registry.model=marble",
        "marble serve --preset demo --port 8001 --every 5",
        "marble serve --preset sd35-medium-1gpu-24g --render kserve --settings settings.yaml    # YAML for kubectl apply -f -",
    ),
    "rollback": ("marble rollback", "marble rollback marble --to 3"),
    "checkpoints list": ("marble checkpoints list nightly-7",),
    "checkpoints verify": ("marble checkpoints verify nightly-7",),
    "checkpoints prune": ("marble checkpoints prune nightly-7 --keep-last 2 --dry-run",),
    "votes add": ("marble votes add nightly-7 votes.json",),
    "demo pretrain": ("marble demo pretrain --out my_sd3",),
    "demo score": ("marble demo score my_sd3",),
    "demo pretrain-rewards": ("marble demo pretrain-rewards --out my_rewards",),
}


def add_examples(app: typer.Typer, prefix: str = "") -> None:
    """Give every command of the app, and of the groups in it, its examples."""
    for command in app.registered_commands:
        name = command.name or str(getattr(command.callback, "__name__", "")).replace("_", "-")
        command.epilog = "\n\n".join(("Examples:", *EXAMPLES.get(prefix + name, ())))
    for group in app.registered_groups:
        if group.typer_instance:
            add_examples(group.typer_instance, f"{prefix}{group.name} ")
