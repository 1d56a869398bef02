"""The pipeline on this machine: kfp.local runs every stage as a process of this environment, or in its container.

``run`` starts a child that executes the pipeline with its output in a log file, and draws the stages' progress meanwhile.
The child is ``python -m marble_kubeflow.pipelines.local``, in a process group of its own: an interrupt ends its stages too.
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from marble_core.runtime import out_of_memory, progress
from marble_core.runtime.child_process import ChildProcess
from marble_core.runtime.environment import OVERRIDES, PROGRESS, STUDY
from marble_core.runtime.progress_display import Display
from marble_core.runtime.scratch import locked, remove_dead
from marble_core.types import MarbleError, Outage
from marble_kubeflow.pipelines.settings import Images

if TYPE_CHECKING:
    from marble_kubeflow.pipelines.study import Plan

GRACE = 30.0  # seconds in which an interrupted stage may write its checkpoint

TAIL = 20  # lines of a traceback that are shown


@dataclass(frozen=True)
class Outcome:
    """What the stages of a finished run found, by stage (see marble_core.stages)."""

    directory: Path
    results: dict[str, dict[str, Any]]


def run(
    preset: str,
    overrides: Sequence[str],
    run_id: str,
    directory: Path,
    console: Console,
    images: Images | None = None,
    rehearse: bool = False,
) -> Outcome:
    """Run the pipeline with its files under ``directory``, on the services that the environment names.

    With ``images`` each stage runs in a container, else as a process.

    Raises MarbleError with the sentence of a stage that raised one, and StageFailed for any other failure.
    """
    _check_path(directory := directory.resolve(), run_id)
    parameters = {"preset": preset, "run_id": run_id, "rehearse": "yes" if rehearse else ""}
    interrupted = f"A stage that trains writes a checkpoint first; --run-id {run_id} goes on from it."
    return _executed({"parameters": parameters}, directory, console, "register", interrupted, images, overrides=overrides)


def run_study(plan: "Plan", directory: Path, console: Console, environment: Mapping[str, str]) -> Outcome:
    """Run a study's pipeline with its files under ``directory``, each cell as a process, two at most at a time, on the S3 server that
    the environment names. ``environment`` is that of the processes (marble_core.bench.study_checkout).

    Raises MarbleError with the sentence of a cell that raised one, and StageFailed for any other failure.
    """
    _check_path(directory := directory.resolve(), plan.name)
    interrupted = "The same command goes on; finished cells are not made again."
    return _executed({"study": asdict(plan)}, directory, console, "study_report", interrupted, None, environment)


def remove_left_by_killed(runs: Path) -> None:
    """What killed runs have left in the directory of all runs, settings among it: a run's directory stays, its ``tmp`` goes."""
    places = (place for run in runs.glob("*") if not run.is_symlink() for place in (run, run / "scratch"))
    remove_dead(place / "tmp" for place in places if not place.is_symlink())


def _check_path(directory: Path, run_id: str) -> None:
    if "python3" in str(directory) or "python3" in run_id:
        # kfp.local replaces this word by the interpreter's path, in arguments too.
        raise MarbleError(f"kfp.local cannot work in a path that contains 'python3'; run in another place than {directory}.")


def _executed(
    told: Mapping[str, Any],
    directory: Path,
    console: Console,
    last: str,
    interrupted: str,
    images: Images | None = None,
    more: Mapping[str, str] = MappingProxyType({}),
    overrides: Sequence[str] = (),
) -> Outcome:
    """The pipeline in a child, to the result of its stage ``last``. What it is ``told`` and ``overrides`` go by files."""
    directory.mkdir(parents=True, exist_ok=True)
    home = directory / "scratch" if images else directory  # the one place that containers see
    events, log = home / "progress.jsonl", directory / "pipeline.log"
    events.unlink(missing_ok=True)
    scratch = home / "tmp"  # kfp leaves a workspace and a directory for each stage behind
    remove_dead([scratch])
    command = [sys.executable, "-m", __name__, str(scratch / "told.json"), str(directory)]
    if images:
        from marble_kubeflow.pipelines import containers

        containers.hand_over([directory / "artifacts", home, scratch])
        command.append(images.model_dump_json())
    scratch.mkdir(exist_ok=True)
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **more, PROGRESS: str(events), "TMPDIR": str(scratch)}
    _for_this_user_alone(scratch / "told.json", json.dumps(told))
    environment[OVERRIDES] = str(_for_this_user_alone(scratch / "overrides.json", json.dumps(list(overrides))))
    killed = out_of_memory.kills()
    with locked(scratch) as lock, Display(events, console) as display:
        child = ChildProcess(command, log, environment, Path.cwd(), (lock,), grace=GRACE)
        try:
            while child.returncode is None:
                display.poll()
                time.sleep(0.1)
        except BaseException:
            console.print(f"Stopping. {interrupted}")
            raise
        finally:
            child.terminate()
            code = child.wait()
            if images:
                containers.remove(directory)
            shutil.rmtree(scratch, ignore_errors=True)
        display.poll()
    _raise_what_was_said(display, code, last, log, interrupted, killed)
    return Outcome(directory, display.results)


def _raise_what_was_said(display: Display, code: int, last: str, log: Path, interrupted: str, killed: int | None) -> None:
    """Where the pipeline, whose process ended with ``code``, has not got to the result of its stage ``last``. ``killed`` were
    counted by the kernel before it began (out_of_memory.py)."""
    if display.error:
        raise MarbleError(display.error)
    if display.unfinished and last == "register" and not display.traceback:  # a study has several cells at a time
        raise Outage(
            f"The stage {display.unfinished} ended without a word, killed by a signal: see {log}. "
            + " ".join(filter(None, [out_of_memory.said(killed), interrupted]))
        )
    if code != 0 or last not in display.results:  # kfp.local has called success what was none
        said = display.traceback or log.read_text(errors="replace", encoding="utf-8")
        tail = "\n".join(said.rstrip().splitlines()[-TAIL:])
        raise progress.StageFailed(f"{tail}\nThe pipeline failed; its whole log is {log}.")


def _for_this_user_alone(file: Path, text: str) -> Path:
    """What may hold secrets, and so stands on no command line; it belongs to whoever the directory belongs to."""
    file.unlink(missing_ok=True)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as target:
        target.write(text)
    if os.getuid() == 0:
        os.chown(file, file.parent.stat().st_uid, -1)
    return file


def main(told: Mapping[str, Any], directory: Path, images: Images | None) -> None:
    """Execute the pipeline in this process and its children, and raise if a stage fails."""
    import warnings

    from kfp import local

    from marble_kubeflow.pipelines.settings import Settings, without_retries

    root = str(directory / "artifacts")
    if images:
        from marble_kubeflow.pipelines import containers
        from marble_kubeflow.pipelines.marble import build

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # lets the container end
        local.init(containers.runner(directory, Path(os.environ[PROGRESS])), pipeline_root=root)
        build(containers.settings_of(images))(**told["parameters"])
        return
    warnings.filterwarnings("ignore", "You may be attemping to run a task")  # no image is run here
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=root)
    settings = without_retries(Settings())
    if "study" in told:
        from marble_kubeflow.pipelines import study

        plan = study.Plan(**told["study"])
        os.environ[STUDY] = str(_for_this_user_alone(Path(os.environ["TMPDIR"]) / "study.json", plan.text))
        study.build(plan, settings, by_file=True)()
    else:
        from marble_kubeflow.pipelines.marble import build

        build(settings)(**told["parameters"])


if __name__ == "__main__":
    main(
        json.loads(Path(sys.argv[1]).read_bytes()),
        Path(sys.argv[2]),
        Images.model_validate_json(sys.argv[3]) if sys.argv[3:] else None,
    )
