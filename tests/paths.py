"""Where the checkout and its tests lie, and files in a directory."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


def write_files(root: Path, *names: str, content: str = "x") -> None:
    """Each file holds ``content`` and its name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + name)


def files_under(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def names_under(directory: Path) -> list[str]:
    """Of all files, relative to the directory."""
    return sorted(path.relative_to(directory).as_posix() for path in files_under(directory))
