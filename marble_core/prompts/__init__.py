"""Prompts: from files and generators to what a run trains on and is judged by. No torch.

reading.py and rows.py read a file, generate.py (with geneval.py and ocr.py) makes prompts, sources.py takes either by its uri,
checks.py and tokens.py look for what should not be there, report.py tells it, data.py does all of that for a configuration,
and mixing.py draws the prompts of an optimizer step.
"""

from marble_core.prompts.mixing import mix
from marble_core.prompts.reading import read_prompts, write_jsonl
from marble_core.prompts.watched import read_watched

__all__ = ["mix", "read_prompts", "read_watched", "write_jsonl"]
