"""Published reward checkpoints, read strictly into our modules."""
