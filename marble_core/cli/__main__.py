"""``python -m marble_core.cli`` is ``marble``."""

from marble_core.cli import main

main()
