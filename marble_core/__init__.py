"""MARBLE: multi-reward fine-tuning of text-to-image models. The library that every pipeline stage shares."""

__version__ = "0.1.0"
