"""marble list: every name that a configuration takes, and no other, each with a sentence."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from commands import one_sentence, run_marble
from marble_core.config.loading import load_config
from marble_core.rewards.registry import SCORERS
from marble_core.types import MarbleError
from paths import ROOT

KINDS = ("presets", "rewards", "methods", "models")


def listed(kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert run_marble("list", kind, "--json", monkeypatch=monkeypatch) == 0
    return json.loads(capsys.readouterr().out)


def test_the_presets_are_the_files_and_each_loads(monkeypatch, capsys):
    names = listed("presets", monkeypatch, capsys)
    assert sorted(names) == sorted(path.stem for path in (ROOT / "marble_core/config/presets").glob("*.yaml"))
    assert all(load_config(name) for name in names)


def test_the_rewards_are_those_that_a_configuration_may_name(monkeypatch, capsys):
    assert list(listed("rewards", monkeypatch, capsys)) == list(SCORERS)


def test_each_method_of_the_list_is_taken_and_another_is_refused(monkeypatch, capsys):
    names = listed("methods", monkeypatch, capsys)
    page = (ROOT / "docs/algorithm.md").read_text().split("## 8. ")[1].split("\n## ")[0]
    assert {name.partition(":")[0] for name in names} == set(re.findall(r"^\| `([a-z_]+)[:`]", page, re.MULTILINE)) - {
        "package"
    }
    stages = ", stages: [{rewards: [ocr], sources: [ocr], steps: 32}]"
    for name in names:
        said = name.replace("<reward>", "ocr")
        load_config("demo", overrides=[f"balance={{method: '{said}'{stages if said == 'sequential' else ''}}}"])
    with pytest.raises(MarbleError, match="unknown method 'mean'"):
        load_config("demo", overrides=["balance.method=mean"])


def test_each_model_of_the_list_is_a_family_by_its_name_and_the_same_by_its_import_path(monkeypatch, capsys):
    for name in listed("models", monkeypatch, capsys):
        by_name = load_config("demo", overrides=[f"model.family={name}"])
        module, _, cls = by_name.model.family.partition(":")
        spec = find_spec(module)
        assert spec and spec.origin and f"class {cls}(DiffusersModel)" in Path(spec.origin).read_text()
        assert load_config("demo", overrides=[f"model.family={module}:{cls}"]) == by_name
    assert load_config("demo", overrides=["model.family=FLUX.1"]).model.family == "marble_core.models.flux:Flux"


@pytest.mark.parametrize("kind", KINDS)
def test_each_name_says_what_it_is_in_sentences_of_25_words_and_the_table_has_the_same_words(kind, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    names = listed(kind, monkeypatch, capsys)
    for name, says in names.items():
        assert says.endswith(".") and says[0].isupper(), name
        assert all(len(sentence.split()) <= 25 for sentence in re.split(r"(?<=[.:]) ", says)), name
    assert run_marble("list", kind, monkeypatch=monkeypatch) == 0
    table = capsys.readouterr().out
    assert max(map(len, table.splitlines())) <= 80
    assert table.split() == " ".join(f"{name} {says}" for name, says in names.items()).split()


def test_a_kind_that_there_is_none_of_is_one_sentence(monkeypatch, capsys):
    assert run_marble("list", "model", monkeypatch=monkeypatch) == 2
    one_sentence(capsys.readouterr().err, "'model'", *KINDS, "marble list --help")
