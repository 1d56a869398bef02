"""Prompts: from files and generators to what a run trains on and is judged by. No torch.

reading.py, rows.py and tables.py read a file, generate.py (with geneval.py and ocr.py) makes prompts, sources.py takes either by its
uri, filters.py and token_lengths.py look for what should not be there, data_report.py tells it, dataset.py does all of that for a
configuration, and mixing.py draws the prompts of an optimizer step.
"""

from marble_core.prompts.mixing import by_source, mix
from marble_core.prompts.reading import read_prompts, write_jsonl
from marble_core.prompts.watched import read_watched

__all__ = ["by_source", "mix", "read_prompts", "read_watched", "write_jsonl"]
