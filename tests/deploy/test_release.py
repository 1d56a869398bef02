"""What `make release` makes before anything would be published."""

import importlib.util
import shutil
import tarfile

import pytest

from paths import ROOT

spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
release = importlib.util.module_from_spec(spec)
spec.loader.exec_module(release)


def test_a_release_has_one_version_in_every_file_that_names_it(tmp_path):
    for file in release.VERSIONS:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    version = release.agreed_version(tmp_path)
    for file in list(release.VERSIONS)[1:]:
        text = (tmp_path / file).read_text()
        (tmp_path / file).write_text(text.replace(version, "9.9.9"))
        with pytest.raises(SystemExit, match=f"names version {version}, but {file} 9.9.9: set them equal"):
            release.agreed_version(tmp_path)
        (tmp_path / file).write_text(text)


def test_the_packed_chart_is_the_chart_and_the_same_bytes_each_time(tmp_path):
    for name in ("a.tgz", "b.tgz"):
        release.pack_chart(tmp_path / name)
    assert (tmp_path / "a.tgz").read_bytes() == (tmp_path / "b.tgz").read_bytes()
    with tarfile.open(tmp_path / "a.tgz") as packed:
        found = {member.name.removeprefix("marble/"): packed.extractfile(member).read() for member in packed}
    chart = ROOT / "helm" / "marble"
    assert found == {path.relative_to(chart).as_posix(): path.read_bytes() for path in chart.rglob("*") if path.is_file()}
