"""docs/evidence.md is what its script makes of the studies' files, and of no others."""

import re
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


def test_what_the_readme_advises_rests_on_intervals_that_stand_in_the_evidence():
    advice = (ROOT / "README.md").read_text(encoding="utf-8").partition("**What to choose.**")[2].partition("##")[0]
    said = re.findall(r"[+-]\d\.\d\d \([^)]*\)", advice)
    evidence = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert len(said) == 2 and all(f"| {interval} |" in evidence for interval in said)
