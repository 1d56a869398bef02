"""docs/evidence.md is what its script makes of the studies' files, and of no others."""

import shutil
import subprocess
import sys

from paths import ROOT


def test_each_number_of_the_evidence_comes_from_a_studys_file(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    check = [sys.executable, tmp_path / "docs" / "evidence.py", "--check"]
    subprocess.run(check, check=True, cwd=ROOT)
    page = tmp_path / "docs" / "evidence.md"
    page.write_text(page.read_text(encoding="utf-8").replace("95 %", "96 %"), encoding="utf-8")
    told = subprocess.run(check, check=False, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 1 and "run it" in told.stderr
