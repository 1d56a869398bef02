"""Directories that transformers saved, loaded quietly and strictly: it would fill what is missing with random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedConfig
from transformers.utils import logging

from marble_core.runtime import distributed
from marble_core.types import MarbleError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_pretrained(cls: Any, directory: str | Path, what: str) -> Any:
    """``cls.from_pretrained`` in fp32, for inference. ``what`` begins the error's sentence: "The CLIP checkpoint".

    Raises MarbleError where the directory holds no model, a model of another class, or not all of its tensors.
    """
    try:
        found, _ = PreTrainedConfig.get_config_dict(directory)
        kind, wanted = found.get("model_type"), cls.config_class.model_type
        if kind != wanted:
            raise MarbleError(f"{what} {directory} cannot be loaded: it is a model of type {kind!r}, not {wanted!r}.")
        with quiet():
            model, report = cls.from_pretrained(
                directory, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise MarbleError(f"{what} {directory} cannot be loaded: {first_line(error)}.") from error
    absent = sorted(report["missing_keys"]) + sorted(name for name, *_ in report["mismatched_keys"])
    if absent:
        raise MarbleError(
            f"{what} {directory} cannot be loaded: {len(absent)} of its tensors are missing or of another shape, "
            f"such as {absent[0]}."
        )
    return model.eval().requires_grad_(False)


def load_tokenizer(directory: str | Path, vocabulary: int, what: str) -> Any:
    """The tokenizer that is saved there, for a model of a ``vocabulary`` of so many tokens. ``what`` begins the error's sentence.

    Raises MarbleError where there is none (transformers would make up an empty one), or a larger one than the model knows.
    """
    if not any((Path(directory) / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
        raise MarbleError(f"{what} {directory} cannot be loaded: it has no tokenizer.json and no vocabulary.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise MarbleError(f"{what} {directory} cannot be loaded: {first_line(error)}.") from error
    if len(tokenizer) > vocabulary:
        raise MarbleError(f"{what} {directory} has {len(tokenizer)} tokens and the model {vocabulary}: it is another model's.")
    return tokenizer


def first_line(error: BaseException) -> str:
    """What an error of the libraries says, without the advice that follows, and without its full stop."""
    return str(error).strip().split("\n")[0].rstrip(".")


def default_device() -> str:
    """The process's GPU where there is one."""
    return str(distributed.device())


def place(model: Any, device: str, dtype: str, what: str) -> Any:
    """The model for inference, on that device and in that precision. Raises MarbleError where there is no such one."""
    if dtype not in DTYPES:
        raise MarbleError(f"{what} cannot have the dtype {dtype!r}; choose one of {', '.join(DTYPES)}.")
    try:
        return model.eval().requires_grad_(False).to(torch.device(device), DTYPES[dtype])
    except (RuntimeError, AssertionError) as error:  # torch asserts that CUDA is there
        raise MarbleError(f"{what} cannot be put on the device {device!r}: {first_line(error)}.") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Loading bars and reports have no place in a stage's log; what they say is checked here."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
