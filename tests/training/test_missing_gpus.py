"""A run that asked for GPUs and has none says so at its start (that train and evaluate ask: tests/test_champion.py)."""

from marble_core.runtime.gpus import missing_gpus


def test_fewer_gpus_than_were_asked_for_are_one_sentence_with_what_to_look_for() -> None:
    assert missing_gpus("train", 8, 8, "2.9") == missing_gpus("evaluate", 0, 0, "2.9") == ""
    none, some, one = (missing_gpus(*asked, "2.9") for asked in (("train", 8, 0), ("train", 8, 3), ("evaluate", 1, 0)))
    assert none.startswith("Warning: 8 GPUs were asked for and torch 2.9 sees 0: it trains on the CPU")
    assert "sees 3: it trains on 3 of them" in some and "1 GPU was asked for" in one and "it evaluates on the CPU" in one
    assert all("nvidia-smi" in said and "pod without GPUs" in said for said in (none, some, one))
    assert "(the parameter gpus)" in none and "(the parameter evaluation_gpus)" in one
