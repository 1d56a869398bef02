"""Inside a build: install a team's own wheels and what they need, without touching what is there.

    python install_extra.py all|alone WHEELS TARGET

``alone`` leaves out what they need, for an image that only looks for the classes. A package that needs another version of one that the
image has ends the build with pip's own words.
"""

import json
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path


def main(what: str, wheels: Path, target: Path) -> None:
    own = [str(wheel) for wheel in sorted(wheels.glob("*.whl"))]
    if not own:
        return
    wanted = own if what == "alone" else [*own, *missing(own, wheels)]
    pip("install", "--no-deps", "--target", str(target), *wanted)


def missing(own: list[str], scratch: Path) -> list[str]:
    """What pip would install beside them, NAME==VERSION, where what is there stays as it is."""
    constraints, report = scratch / "constraints.txt", scratch / "report.json"
    here = sorted({f"{found.metadata['Name']}=={found.version}" for found in distributions()})
    constraints.write_text("\n".join(here), encoding="utf-8")
    pip("install", "--dry-run", "--report", str(report), "--constraint", str(constraints), *own)
    found = [item["metadata"] for item in json.loads(report.read_bytes())["install"] if not item["is_direct"]]
    return [f"{one['name']}=={one['version']}" for one in found]


def pip(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *words], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:  # which packages are in conflict stands in what it says by the way
        sys.exit(done.stdout)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
