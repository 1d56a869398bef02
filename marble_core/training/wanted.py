"""What a run asks of Kubernetes for the stages behind prepare: GPUs, CPUs and memory of their pods. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from marble_core.config.pipeline_parameters import gpus_of
from marble_core.config.schema import RunConfig
from marble_core.estimate.pods import WATCHES, Node, check_pod, node_of
from marble_core.runtime.environment import LIMITS
from marble_core.types import Cards


class Wanted(NamedTuple):
    """As texts, since KFP reads no number in a pod's resources."""

    run: str
    gpus: str
    evaluation_gpus: str
    train_cpu: str
    train_memory: str
    evaluate_cpu: str
    evaluate_memory: str

    @classmethod
    def of(cls, run: str, config: RunConfig, cards: Cards, form: Mapping[str, Any], anything: bool) -> Wanted:
        """Of a run that has ``anything`` to train on. Where it has not, and for train where the pods of other nodes do the work, a pod
        only watches. Raises MarbleError where the pipeline file allows a pod less than it needs."""
        own, evaluation = gpus_of(form)
        nodes = nodes_of(config, cards, form)
        trains, watches = anything and config.train.nodes == 1, WATCHES
        train, judge = (nodes["train"] if trains else watches), (nodes["evaluate"] if anything else watches)
        gpus, evaluation = own if trains else "0", evaluation if anything else "0"
        return cls(run, gpus, evaluation, train.cpu, train.memory, judge.cpu, judge.memory)


def nodes_of(config: RunConfig, cards: Cards, form: Mapping[str, Any]) -> dict[str, Node]:
    """Of a pod in which train works, and of evaluate's. Raises MarbleError where the pipeline file allows one less."""
    own, evaluation = map(int, gpus_of(form))
    gpus = config.train.processes if config.train.nodes > 1 and config.hardware.gpus else own
    nodes = {"train": node_of(config, cards, gpus), "evaluate": node_of(config, cards, evaluation, measured=True)}
    for stage, limits in json.loads(os.environ.get(LIMITS) or "{}").items():
        check_pod(stage, nodes[stage], limits)
    return nodes
