"""Checks that test_private_apis.py's rows name: the command line, MLflow, S3, the hub, OCR, drawing and settings."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def typer_app() -> None:
    """One that is not standalone returns the code of Exit, and raises what the command line's errors have in common."""
    import inspect

    import typer

    def command(**given: int) -> None:
        raise typer.Exit(given["n"])

    command.__signature__ = inspect.Signature(
        [inspect.Parameter("n", inspect.Parameter.KEYWORD_ONLY, annotation=int, default=1)]
    )
    command.__annotations__ = {"n": int}
    app, group = typer.Typer(), typer.Typer()
    app.add_typer(group, name="group")
    app.command("one")(command)
    group.command()(command)
    (info,), (inner,) = app.registered_commands, app.registered_groups
    info.epilog = "Examples"
    assert (info.name, info.callback, inner.name, inner.typer_instance) == ("one", command, "group", group)
    assert group.registered_commands[0].name is None and typer.main.get_command(app).commands["one"].epilog == "Examples"
    assert app(["one", "--n", "3"], standalone_mode=False) == 3
    with pytest.raises(typer.BadParameter.__base__) as wrong:
        app(["one", "--m", "3"], standalone_mode=False)
    assert "--m" in wrong.value.format_message() and wrong.value.ctx.command_path.endswith("one")


def mlflow_server() -> None:
    """In a process of its own: it is a server once it is imported."""
    script = "from mlflow.server import _find_app\nfrom mlflow.server.fastapi_app import app\nprint(callable(app), _find_app('basic-auth'))"
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "mlflow.server.auth:create_app"]


def mlflow_names(tmp_path: Path) -> None:
    from inspect import signature

    import mlflow.diffusers
    from mlflow import environment_variables
    from mlflow.protos.databricks_pb2 import ErrorCode
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
    from mlflow.utils import mlflow_tags as tags

    assert {"run_id", "resume_logging", "tracking_uri"} <= signature(SystemMetricsMonitor).parameters.keys()
    assert [*signature(mlflow.MlflowClient.set_registered_model_alias).parameters] == ["self", "name", "alias", "version"]
    assert callable(SystemMetricsMonitor.start) and callable(SystemMetricsMonitor.finish)
    ours = ("parentRunId", "note.content", "source.name", "source.git.commit", "data.context")
    theirs = (tags.MLFLOW_PARENT_RUN_ID, tags.MLFLOW_RUN_NOTE, tags.MLFLOW_SOURCE_NAME, tags.MLFLOW_GIT_COMMIT)
    assert (*theirs, tags.MLFLOW_DATASET_CONTEXT) == tuple(f"mlflow.{name}" for name in ours)
    assert {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS"} <= set(ErrorCode.keys())
    for name in ("HTTP_REQUEST_MAX_RETRIES", "HTTP_REQUEST_TIMEOUT", "DISABLE_TELEMETRY", "SUPPRESS_PRINTING_URL_TO_STDOUT"):
        assert hasattr(environment_variables, f"MLFLOW_{name}"), name
    (weights := tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    mlflow.diffusers.save_model(str(weights), str(tmp_path / "model"), base_model=str(tmp_path), pip_requirements=[])
    assert (tmp_path / "model" / "adapter_weights" / weights.name).is_file()


def s3_errors(tmp_path: Path) -> None:
    import boto3
    from boto3.exceptions import Boto3Error
    from boto3.s3.transfer import TransferConfig
    from botocore.exceptions import ClientError
    from botocore.stub import Stubber

    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    client = boto3.Session().client("s3", endpoint_url="http://127.0.0.1:9", **keys)
    (tmp_path / "file").write_bytes(b"")
    with Stubber(client) as stubber, pytest.raises(Boto3Error) as hidden:
        stubber.add_client_error("put_object", "NoSuchBucket")
        client.upload_file(str(tmp_path / "file"), "bucket", "key", Config=TransferConfig(use_threads=False))
    assert isinstance(hidden.value.__context__, ClientError) and client.meta.endpoint_url == "http://127.0.0.1:9"
    assert hidden.value.__context__.response["Error"]["Code"] == "NoSuchBucket"


def hub_constants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read when a function is called, not when it is imported."""
    import httpx2
    import huggingface_hub as hub
    from huggingface_hub import constants, errors
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, tqdm

    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    places = {"ENDPOINT": "http://127.0.0.1:9", "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": False}
    for name, value in {**places, "HF_HUB_CACHE": str(tmp_path), "HF_ASSETS_CACHE": str(tmp_path / "assets")}.items():
        assert isinstance(getattr(constants, name), type(value))
        monkeypatch.setattr(constants, name, value)
    assert hub.hf_hub_url("a/b", "c").startswith("http://127.0.0.1:9/a/b")
    with pytest.raises(httpx2.TransportError):
        hub.HfApi().model_info("a/b")
    with pytest.raises(errors.CachedRepoTreeNotFoundError):
        hub.get_cached_repo_tree("a/b", revision=None)
    (tmp_path / "models--a--b" / "refs").mkdir(parents=True)
    (tmp_path / "models--a--b" / "refs" / "main").write_text("c" * 40)
    (tmp_path / "models--a--b" / "snapshots" / ("c" * 40)).mkdir(parents=True)
    (tmp_path / "models--a--b" / "snapshots" / ("c" * 40) / "d").write_text("")
    assert hub.try_to_load_from_cache("a/b", "d") == str(tmp_path / "models--a--b" / "snapshots" / ("c" * 40) / "d")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(errors.OfflineModeIsEnabled):
        hub.HfApi().model_info("a/b")
    disable_progress_bars()
    assert are_progress_bars_disabled() and not hasattr(tqdm(total=1), "nonsense")
    enable_progress_bars()
    assert not are_progress_bars_disabled()


def ocr() -> None:
    """The recogniser alone reads a list of lines at once."""
    from PIL import Image, ImageDraw, ImageFont
    from rapidocr import RapidOCR
    from rapidocr.ch_ppocr_rec import TextRecInput

    lines = []
    for word in ("CAT", "DOG"):
        ImageDraw.Draw(line := Image.new("RGB", (128, 48), "white")).text((8, 4), word, "black", ImageFont.load_default(32))
        lines.append(np.asarray(line))
    shape = {"Rec.rec_img_shape": [3, 48, 128], "EngineConfig.onnxruntime.intra_op_num_threads": 1}
    engine = RapidOCR(params={"Global.use_det": False, "Global.use_cls": False, "Global.log_level": "error", **shape})
    assert list(engine._load_rec_model()(TextRecInput(img=lines)).txts) == ["CAT", "DOG"]


def drawing() -> None:
    from matplotlib.cbook import get_sample_data
    from matplotlib.figure import Figure

    (figure := Figure()).add_subplot().plot([1, 2], color="#fe0003")
    figure.savefig(buffer := io.StringIO(), format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    assert "#fe0003" in text and all(
        re.search(rf"<{tag}[ >].*?</{tag}>", text, re.DOTALL) for tag in ("svg", "metadata", "style")
    )
    assert Path(str(get_sample_data("grace_hopper.jpg", asfileobj=False))).is_file()


def solver() -> None:
    """Clarabel's own tolerances pass through, and an unknown one is refused."""
    import cvxpy

    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(x := cvxpy.Variable(2))), [cvxpy.sum(x) == 1])
    problem.solve(solver=cvxpy.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
    assert np.abs(x.value - 0.5).max() < 1e-12
    with pytest.raises(TypeError, match="tol_nonsense"):
        problem.solve(solver=cvxpy.CLARABEL, tol_nonsense=1)


def settings() -> None:
    import urllib3
    import yaml
    from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, field_validator
    from pydantic.errors import PydanticUserError

    class Section(BaseModel):
        model_config = ConfigDict(extra="forbid")
        n: int
        part: dict[str, int] = {}
        pair: tuple[int, ...] = ()

        @field_validator("n")
        @classmethod
        def _even(cls, n: int) -> int:
            raise ValueError("must be even")

    def found(value: Any, kind: Any = Section) -> list[tuple[Any, ...]]:
        with pytest.raises(ValidationError) as wrong:
            TypeAdapter(kind).validate_python(value)
        return [(each["type"], each["loc"], each["msg"]) for each in wrong.value.errors()]

    assert found({"n": 1, "m": 2})[::-1][0][:2] == ("extra_forbidden", ("m",))
    assert found({"n": 1}) == [("value_error", ("n",), "Value error, must be even")]
    assert [each[0] for each in found({"part": 1, "pair": 1})] == ["missing", "dict_type", "tuple_type"]
    assert found(1)[0][0] == "model_type" and issubclass(PydanticUserError, Exception)
    with pytest.raises(PydanticUserError):
        TypeAdapter(re.Scanner)

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys.extend((key.tag, key.value, key.start_mark.line) for key, _ in node.value)
            return super().construct_mapping(node, deep)

    keys: list[Any] = []
    assert yaml.load("a: 1\na: {1: 2}\n", Loader) == {"a": {1: 2}}
    assert keys == [(f"tag:yaml.org,2002:{t}", v, n) for t, v, n in (("str", "a", 0), ("str", "a", 1), ("int", "1", 1))]
    for name in ("NameResolutionError", "ConnectTimeoutError", "ReadTimeoutError", "SSLError", "NewConnectionError"):
        assert issubclass(getattr(urllib3.exceptions, name), urllib3.exceptions.HTTPError)
    with pytest.raises(urllib3.exceptions.MaxRetryError) as away:
        urllib3.PoolManager(retries=urllib3.Retry(0)).request("GET", "http://127.0.0.1:9")
    assert type(away.value.reason).__name__ == "NewConnectionError"
