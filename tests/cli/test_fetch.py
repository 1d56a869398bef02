"""marble fetch, and what loads without a network afterwards."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import constants

from marble_core.cli.fetch import fetch
from marble_core.rewards.clipscore import ClipScore
from tiny_rewards import PROMPTS, noise, save_clip

pytestmark = pytest.mark.usefixtures("cache")


def test_fetch_brings_what_is_missing_and_a_scorer_then_loads_without_a_network(hub, tmp_path, monkeypatch, capsys):
    save_clip(hub.root / "org/tiny")
    web = f"{hub.url}/files/org/tiny/model.safetensors"
    own = {"name": "mine", "scorer": "mine:Mine", "options": {"head": web}}
    setting = [f"rewards={json.dumps([{'name': 'clipscore', 'options': {'checkpoint': 'org/tiny'}}, own])}"]
    fetch("demo", set_=setting, dry_run=True)
    assert capsys.readouterr().out.count("to fetch") == 2 and not (tmp_path / "home").exists()
    fetch("demo", set_=setting)
    assert "works offline" in capsys.readouterr().out
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    fetch("demo", set_=setting)
    said = capsys.readouterr().out
    assert said.count("in the cache") == 2 and said.count("here  ") == 1 and "Fetched" not in said
    assert np.isfinite(ClipScore("org/tiny").score(noise(1, 32), PROMPTS[:1]))


def test_fetch_brings_the_others_where_one_is_refused(hub, tmp_path):
    hub.gated.add("org/clip")
    save_clip(hub.root / "org/tiny")
    rewards = [{"name": n, "options": {"checkpoint": f"org/{u}"}} for n, u in (("clipscore", "clip"), ("pickscore", "tiny"))]
    command = [sys.executable, "-m", "marble_core.cli", "fetch", "--set", f"rewards={json.dumps(rewards)}"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "HF_TOKEN": "t0k3n"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2 and "Fetched" in done.stdout and "works offline" not in done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith("The model 'org/clip' is gated: accept its licence on")
    assert "Traceback" not in done.stderr and "t0k3n" not in done.stderr + done.stdout
