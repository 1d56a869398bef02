"""torchrun, which also leaves how the first of its processes ended: its own exit code is 1, whatever that was.

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
        file.write_text(str(error.get_first_failure()[1].exitcode), encoding="ascii")
        raise


if __name__ == "__main__":
    main()
