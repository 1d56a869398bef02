"""MARBLE: multi-reward fine-tuning of text-to-image models. The library that every pipeline stage shares.

Its public names are imported on use, so that ``import marble_core`` takes no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marble_core.algorithm.balancers import Balance as Balance
    from marble_core.algorithm.balancers import Balancer as Balancer
    from marble_core.algorithm.learner import Learner as Learner
    from marble_core.config.loading import load_config as load_config
    from marble_core.config.schema import RunConfig as RunConfig
    from marble_core.models.base import DiffusersModel as DiffusersModel
    from marble_core.prompts.dataset import prepare_data as prepare_data
    from marble_core.rewards.endpoint import Endpoint as Endpoint
    from marble_core.rewards.scoring import score_all as score_all
    from marble_core.step import optimizer_step as optimizer_step
    from marble_core.training.loop import start_learner as start_learner
    from marble_core.types import Conditioning as Conditioning
    from marble_core.types import MarbleError as MarbleError
    from marble_core.types import NoValue as NoValue
    from marble_core.types import Prompt as Prompt
    from marble_core.types import Scorer as Scorer
    from marble_core.types import StepReport as StepReport

__version__ = "0.1.0"

_HOME = {
    "Balance": "marble_core.algorithm.balancers",
    "Balancer": "marble_core.algorithm.balancers",
    "Conditioning": "marble_core.types",
    "DiffusersModel": "marble_core.models.base",
    "Endpoint": "marble_core.rewards.endpoint",
    "Learner": "marble_core.algorithm.learner",
    "MarbleError": "marble_core.types",
    "NoValue": "marble_core.types",
    "Prompt": "marble_core.types",
    "RunConfig": "marble_core.config.schema",
    "Scorer": "marble_core.types",
    "StepReport": "marble_core.types",
    "load_config": "marble_core.config.loading",
    "optimizer_step": "marble_core.step",
    "prepare_data": "marble_core.prompts.dataset",
    "score_all": "marble_core.rewards.scoring",
    "start_learner": "marble_core.training.loop",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
