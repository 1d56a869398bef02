"""The champion answered over HTTP: one process holds the base model, the LoRA that the registry's alias names, and the one before it."""
