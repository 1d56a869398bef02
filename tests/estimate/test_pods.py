"""CPUs and memory of the pods of train and evaluate: each preset's, as docs/cluster.md has them, and a pod that is too small."""

import json

import pytest

from marble_core.config.loading import load_config
from marble_core.config.pipeline_parameters import overrides_of
from marble_core.estimate.pods import UNKNOWN_GIB, Node, node_of
from marble_core.rewards.cards import cards_of
from marble_core.runtime.environment import LIMITS
from marble_core.training.wanted import Wanted, nodes_of
from marble_core.types import MarbleError
from paths import ROOT
from with_cards import resolve_batch_sizes

GPUS = {  # of the pods of train and evaluate
    "demo": (0, 0),
    "sd35-medium-1gpu-24g": (1, 1),
    "sd35-medium-1gpu-80g": (1, 1),
    "sd35-medium-8gpu": (8, 8),
    "sd35-large": (8, 8),
}


def config(preset: str, *overrides: str):
    return resolve_batch_sizes(load_config(preset, overrides=list(overrides)))


def node(one, gpus: int, measured: bool = False) -> Node:
    return node_of(one, cards_of(one.measured), gpus, measured)


def test_what_each_presets_pods_ask_for_is_in_the_documents() -> None:
    table = []
    for preset, (gpus, evaluation) in GPUS.items():
        one = config(preset)
        train, judge = node(one, gpus), node(one, evaluation, measured=True)
        cells = [f"`{preset}`", gpus, train.cpu, train.memory, evaluation, judge.cpu, judge.memory]
        table.append(f"| {' | '.join(map(str, cells))} |")
    print("\n".join(table))
    said = (ROOT / "docs/cluster.md").read_text(encoding="utf-8").splitlines()
    assert [row for row in table if row not in said] == []


def test_what_waits_in_the_hosts_memory_is_asked_for_and_every_gpu_has_its_own() -> None:
    small = config("sd35-medium-1gpu-24g")
    assert 25e9 < node(small, 1).gib * 2**30 < 32e9, "the preset says about 25 GB, and the libraries come to that"
    stays = load_config("sd35-medium-1gpu-24g", overrides=["model.offload=none"])
    assert node(stays, 1, measured=True).gib < node(small, 1, measured=True).gib - 9
    eight = config("sd35-medium-8gpu")
    assert node(eight, 8).gib == pytest.approx(8 * node(eight, 1).gib, abs=8)
    assert node(config("sd35-medium-8gpu", "model.t5=none"), 1).gib < node(eight, 1).gib - 8


def test_ocr_gets_the_cpus_that_keep_up_with_sampling() -> None:
    eight = config("sd35-medium-8gpu")
    without = config("sd35-medium-8gpu", "rewards=[{name: pickscore}]", "evaluation.rewards=[]")
    assert node(without, 8).cpus == 9 < node(eight, 8).cpus
    texts = eight.model_copy(update={"data": eight.data.model_copy(update={"train": {"ocr": "generate://ocr"}})})
    assert node(texts, 8).cpus > node(eight, 8).cpus + 6, "every image is read, not every third"


def test_a_model_of_unknown_size_and_a_run_with_nothing_to_train_on_have_pods_too() -> None:
    unknown = load_config("demo", overrides=["model.path=somebody/model"])
    assert node_of(unknown, cards_of(unknown.measured), 2) == Node(cpus=5, gib=2 * UNKNOWN_GIB)
    one = config("sd35-medium-8gpu")
    nothing = Wanted.of("run", one, cards_of(one.measured), {"gpus": "8", "evaluation_gpus": "8"}, anything=False)
    assert nothing[1:] == ("0", "0", "1", "2Gi", "1", "2Gi")


def test_a_pod_that_may_not_have_the_memory_it_needs_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    form = {"gpus": "8", "evaluation_gpus": "1"}
    one = config("sd35-medium-8gpu", *overrides_of("sd35-medium-8gpu", **form))
    needed = nodes_of(one, cards := cards_of(one.measured), form)
    monkeypatch.setenv(LIMITS, json.dumps({"train": {"memory": needed["train"].memory, "cpu": "1"}}))
    assert nodes_of(one, cards, form) == needed
    for stage, limit in (("train", "64Gi"), ("evaluate", "16e9")):
        monkeypatch.setenv(LIMITS, json.dumps({stage: {"memory": limit}}))
        says = (
            rf"pod of {stage} may use {limit} of memory and needs about {needed[stage].memory}: raise pods.{stage}.memory_limit"
        )
        with pytest.raises(MarbleError, match=says):
            nodes_of(one, cards, form)
