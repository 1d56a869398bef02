"""A process without a home, in the locale C and in a time zone of the other end of the world does what any other does."""

import os
import subprocess
import sys

from commands import environment

PLAIN = ("HOME", "LANG", "LANGUAGE", "PYTHONUTF8", "PYTHONIOENCODING", "LC_CTYPE", "XDG_CACHE_HOME")
ODD = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "TZ": "Pacific/Kiritimati"}


def test_a_check_needs_no_home_no_locale_and_no_time_zone_of_here(tmp_path):
    folder = tmp_path / "Grüße"
    folder.mkdir()
    (folder / "p.jsonl").write_text(
        "".join(f'{{"prompt": "ein Schild, auf dem „Grüße {n}“ steht", "text": "Grüße {n}"}}\n' for n in range(40)),
        encoding="utf-8",
    )
    surroundings = {name: value for name, value in environment().items() if name not in PLAIN} | ODD
    command = [sys.executable, "-m", "marble_core.cli", "check", "--set", "data.train.ocr=p.jsonl"]
    command += ["--set", "data.train_size=30", "--set", "data.evaluation_size=9"]
    done = subprocess.run(command, cwd=os.fsencode(folder), env=surroundings, capture_output=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, b""), done.stdout + done.stderr
    assert b"The configuration is valid." in done.stdout and b" prompts " in done.stdout
