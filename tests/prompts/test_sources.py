"""Prompt files from the web and from S3."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from marble_core.prompts.sources import load
from marble_core.storage.s3 import S3
from marble_core.types import MarbleError
from prompt_files import sentence


@pytest.fixture
def _model_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("_model_cache")
def test_a_published_prompt_file_is_read_from_the_web_and_its_signature_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text('a sign "A"\na sign "B\n')
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}/p.txt"
        assert [p.where for p in load(f"{uri}?sig=secret", "general", 1, 0, False)] == [f"{uri}, line 1", f"{uri}, line 2"]
        for wrong, says in ((uri, f"{uri}, line 2: the quote"), (uri.replace("p.txt", "q.txt"), "404")):
            with pytest.raises(MarbleError) as error:
                load(f"{wrong}?sig=secret", "ocr", 1, 0, False)
            assert "secret" not in sentence(error, says)
        server.shutdown()


@pytest.mark.services
@pytest.mark.usefixtures("_model_cache")
def test_a_prompt_file_in_s3_is_read_and_its_faults_are_named_by_its_uri(bucket: S3, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text('a sign "A"\na sign "B\n')
    uri = bucket.upload_file(tmp_path / "p.txt", "prompts/p.txt")
    assert [p.where for p in load(uri, "general", 1, 0, False)] == [f"{uri}, line 1", f"{uri}, line 2"]
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: load(uri, "ocr", 1, 0, False), f"{uri}, line 2: the quote"),
        (lambda: load(bucket.uri("prompts/none.txt"), "ocr", 1, 0, False), "nothing at"),
        (lambda: load(f"s3://{uuid.uuid4()}/p.txt", "ocr", 1, 0, False), "no S3 bucket"),
        (lambda: load("s3://bucket", "ocr", 1, 0, False), "not of the form"),
    ]
    for attempt, says in refused:
        with pytest.raises(MarbleError) as error:
            attempt()
        sentence(error, says)
