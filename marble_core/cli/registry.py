"""Commands on the registered models: rollback, export."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from marble_core.cli.options import AsJson, print_json
from marble_core.cli.servers import mlflow_of_runs


def rollback(
    model: Annotated[str, typer.Argument(help="The registered model: registry.model.")] = "marble",
    to: Annotated[str | None, typer.Option(help="The version. Default: the one that the champion replaced.")] = None,
    json_: AsJson = False,
) -> None:
    """Make an earlier version of a registered model the champion again.

    The tags of both versions say so. MLflow is the server in MLFLOW_TRACKING_URI, or this directory's.
    """
    from marble_core.tracking.registry import roll_back

    with mlflow_of_runs():
        before, after = roll_back(model, to)
    if json_:
        return print_json({"model": model, "champion": after, "replaced": before})
    print(f"Version {after} of {model} is the champion again, in place of version {before}.")


class Form(StrEnum):
    """marble_core.models.adapter_file.FORMS, which needs torch to be imported."""

    DIFFUSERS = "diffusers"
    PEFT = "peft"
    COMFYUI = "comfyui"


def export(
    adapter: Annotated[str, typer.Argument(help="A LoRA: a directory or file, models:/NAME@ALIAS, or an address.")],
    form: Annotated[Form, typer.Option(help="Whose names and files: diffusers, peft, or ComfyUI and kohya.")] = Form.COMFYUI,
    out: Annotated[Path | None, typer.Option(help="A directory; for comfyui a .safetensors file. Default: export/.")] = None,
    json_: AsJson = False,
) -> None:
    """Write a LoRA for other programs. alpha / r is folded into its weights, so that strength 1 means the same in all of them.

    ComfyUI's form is for SD3 and SD3.5. No base model is needed.
    """
    from marble_core.models.adapter_file import read_unplaced, write_lora
    from marble_core.runtime.scratch import scratch_directory
    from marble_core.tracking.registry import fetch_adapter

    place = out or Path("export") / ("marble.safetensors" if form == Form.COMFYUI else "")
    with ExitStack() as stack:
        if adapter.startswith("models:/"):
            stack.enter_context(mlflow_of_runs())
        layers = read_unplaced(fetch_adapter(adapter, stack.enter_context(scratch_directory())))
        file = write_lora(layers, place, form.value)
    rank = max(layer.rank for layer in layers.values())
    if json_:
        return print_json({"file": str(file), "form": form.value, "layers": len(layers), "rank": rank})
    print(f"{file}: {len(layers)} layers of rank {rank}, at strength 1.")
