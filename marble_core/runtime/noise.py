"""What third parties write into a stage's log and what says nothing to its reader. Each line was seen there."""

from __future__ import annotations

import logging
import warnings

WARNINGS = (
    r"Already found a `peft_config` attribute in the model",  # peft: our adapters old and default are two, on purpose
    r"You may be attemping to run a task",  # kfp, of a process in the place of an image
    r".*torch\.distributed\.reduce_op.* is deprecated",
)
LINES = {  # of a logger: how its lines begin
    "diffusers.models.modeling_utils": ("There are modules in",),  # modules of an empty list are kept in float32
    "transformers.utils.import_utils": ("`SiglipImageProcessor` requires", "`CLIPImageProcessor` requires"),
    "mlflow.store.model_registry.abstract_store": ("Waiting up to",),
    "mlflow.system_metrics.system_metrics_monitor": ("Skip logging GPU metrics", "Started", "Stopping", "Successfully"),
}


class _Filter(logging.Filter):
    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self._beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._beginnings)


def quieten() -> None:
    """For this process, from now on."""
    for beginning in WARNINGS:
        warnings.filterwarnings("ignore", beginning)
    for name, beginnings in LINES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(each, _Filter) for each in logger.filters):
            logger.addFilter(_Filter(beginnings))
