"""torchrun, which also leaves how the first of its processes ended, or the one that was killed: its own exit code is 1 always.

python -m marble_core.training.torchrun FILE ARGUMENTS-OF-TORCHRUN
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    file = Path(sys.argv.pop(1))
    try:
        run.main()
    except ChildFailedError as error:
        killed = [
            failure.exitcode for failure in error.failures.values() if failure.exitcode < 0
        ]  # their times are whole seconds
        file.write_text(str(killed[0] if killed else error.get_first_failure()[1].exitcode), encoding="ascii")
        raise


if __name__ == "__main__":
    main()
