"""The prompts that a training is watched by are nobody else's."""

from pathlib import Path

from marble_core.config.loading import load_config
from marble_core.prompts import write_jsonl
from marble_core.prompts.dataset import prepare_data
from marble_core.prompts.watched import read_watched
from prompt_files import prepared


def texts(prompts) -> set[str]:  # type: ignore[no-untyped-def]
    return {p.text.casefold() for p in prompts}


def test_prompts_that_are_made_are_new_ones_and_the_evaluation_keeps_all_of_its_own() -> None:
    sizes = ["data.train_size=300", "data.evaluation_size=40", "watch.prompts=5"]
    for spec in ([], ["data.train.ocr=generate://ocr", "data.evaluation.ocr=generate://ocr"]):
        with_, without = (
            prepare_data(load_config("demo", overrides=[*sizes, *spec, e])) for e in ("watch.every=8", "watch.every=0")
        )
        assert with_.train == without.train and with_.evaluation == without.evaluation and not without.watched
        assert [sum(p.source == s for p in with_.watched) for s in ("general", "ocr", "geneval")] == [5, 5, 5]
        assert len(texts(with_.watched)) == 15
        assert not texts(with_.watched) & (texts(with_.evaluation) | texts(with_.train))


def test_of_a_file_a_quarter_at_most_is_watched_evenly_spaced_and_not_evaluated(tmp_path: Path) -> None:
    train = "\n".join(f"train {i}" for i in range(50))
    held_out = [f"held out {i:02d}" for i in range(24)]
    data = prepared(tmp_path, train, "\n".join(held_out), "watch.prompts=16")
    watched = [p.text for p in data.watched if p.source == "general"]
    assert watched == [f"held out {i:02d}" for i in (0, 4, 8, 12, 16, 20)]
    assert [p.text for p in data.evaluation if p.source == "general"] == [t for t in held_out if t not in watched]
    assert texts(data.train) >= {f"train {i}" for i in range(50)}
    few = prepared(tmp_path, train, "one\ntwo\nthree")
    assert {p.source for p in few.watched} == {"ocr", "geneval"}, "three are too few to be shared"


def test_none_are_read_where_none_were_written(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "watched.jsonl", [])
    assert read_watched(tmp_path / "watched.jsonl") == []
    write_jsonl(tmp_path / "watched.jsonl", prepare_data(load_config("demo")).watched)
    assert len(read_watched(tmp_path / "watched.jsonl")) == 48
