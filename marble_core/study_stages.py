"""The stages of a study as a pipeline: one cell, and the page on all of them. Each component calls one of them.

They stand above ``stages`` and ``bench``, whose study they run (docs/study.md). A cell is one object on S3; what is there is not
made again. ``study_report`` never imports torch.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from marble_core.bench.study import SNAPSHOT, Study, cell_of, run_directory
from marble_core.bench.study_store import StudyStore
from marble_core.config.formats import check_pipeline
from marble_core.runtime import progress
from marble_core.runtime.again import Again, keep_at_it
from marble_core.runtime.environment import PIPELINE_FORMAT, STUDY
from marble_core.runtime.scratch import scratch_directory
from marble_core.tracking.notices import failures_noticed
from marble_core.types import MarbleError


@failures_noticed("study_cell")
def study_cell(study: str, name: str, arm: str, seed: int, directory: str, out: Path) -> str:
    """Make one cell of the study ``name``, whose file is the text ``study``, or fetch it from S3 where it is finished. ``out`` becomes
    the cell's file. An empty text stands for ``handed_over``.

    It trains in ``directory``, or without one beside the runs (``storage.local``), and goes on from what lies there. Returns a sentence.
    Raises MarbleError where the finished cell was made with other settings.
    """
    study = study or handed_over()
    if wanted := Again.wanted():
        place = run_directory(_place(Study.of(json.loads(study), name), name, directory), arm, seed)
        arguments = [study, name, arm, str(seed), directory, str(out)]
        keep_at_it("study_cell", arguments, wanted, lambda: max((p.name for p in place.glob("checkpoints/step-*")), default=""))
        return f"{arm}, seed {seed} is done."
    with progress.stage(who := f"{arm}, seed {seed}", in_all=True) as result:
        check_pipeline(os.environ.get(PIPELINE_FORMAT, ""))
        told = Study.of(json.loads(study), name)
        store, place = StudyStore(told, name), _place(told, name, directory)
        said = f"{who} was finished before, and is not made again."
        if store.fetch(arm, seed, out) is None:
            place.mkdir(parents=True, exist_ok=True)
            (place / SNAPSHOT).write_text(study, encoding="utf-8")
            store.fetch_roles(place / "roles")
            cell = cell_of(told, place, arm, seed)
            cell.save(out)
            store.keep_roles(place / "roles")
            store.keep(cell, out)
            said = f"{who} is done."
        progress.emit(who, note=said)
        result |= {"said": said}
    return said


@failures_noticed("study_report")
def study_report(study: str, name: str, page: Path, tables: Path) -> dict[str, float]:
    """The study's finished cells as one HTML page and their tables as JSON, here and on S3.

    Returns the mean gain of each arm over the base after the last step, in the base's standard deviations.
    """
    with progress.stage("study_report") as result, scratch_directory() as scratch:
        check_pipeline(os.environ.get(PIPELINE_FORMAT, ""))
        from marble_core.report import study as pages

        told = Study.of(json.loads(study or handed_over()), name)
        store = StudyStore(told, name)
        found = {key: store.fetch(*key, scratch / "cell.json") for key in told.cells}
        cells = [cell for cell in found.values() if cell]
        state = {key: "done" if cell else "not made" for key, cell in found.items()}
        about = pages.About(name, told.model_dump(mode="json"), state, f"{len(cells)} of {len(found)} done")
        if not cells:
            raise MarbleError(f"The study {name} has no finished cell in {store.s3.uri(str(store.prefix))}: run it again.")
        html, summary = pages.render_study(about, cells), pages.summary(about, cells)
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(html, encoding="utf-8")
        tables.parent.mkdir(parents=True, exist_ok=True)
        tables.write_text(json.dumps(summary, indent=2), encoding="utf-8")
        address, headline = store.keep_page(html, summary), pages.headline(about, cells)
        progress.emit("study_report", note=headline)
        result |= {"page": str(page), "tables": str(tables), "address": address, "headline": headline}
        return pages.mean_gains(about, cells)


def handed_over() -> str:
    """The study on this machine, from the file that STUDY names: every user of the machine reads command lines."""
    return Path(os.environ[STUDY]).read_text(encoding="utf-8")


def _place(study: Study, name: str, directory: str) -> Path:
    return Path(directory or Path(study.config(*study.cells[0]).storage.local).parent / "studies" / name)
