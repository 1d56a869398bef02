"""A run's checkpoints on the disk and on S3: whole or not there, written by one process at a time. Imports no torch."""

from marble_core.checkpoints.lease import Taken
from marble_core.checkpoints.store import CheckpointStore
from marble_core.checkpoints.upload import Away

__all__ = ["Away", "CheckpointStore", "Taken"]
