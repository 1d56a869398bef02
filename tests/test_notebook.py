"""examples/quickstart.ipynb, cell by cell as Jupyter runs it, in an empty folder."""

import json
from pathlib import Path

import numpy as np
import pytest

from paths import ROOT

NOTEBOOK = ROOT / "examples/quickstart.ipynb"


@pytest.mark.deep  # loads the demo's model and trains two steps: about a minute beside other work
def test_the_notebook_goes_from_prompts_to_other_images_of_the_same_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)  # noqa: S102
    before, after = (np.stack([np.asarray(image) for image in names[role]]) for role in ("before", "after"))
    assert before.shape == after.shape == (3, 64, 64, 3)
    assert (before != after).any() and before.std() > 10
    assert np.array_equal(
        np.asarray(names["sheet"]), np.concatenate([np.concatenate(list(row), axis=1) for row in (before, after)])
    )
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
