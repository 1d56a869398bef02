"""Pages for people: the report of one run, and the comparison of several.

Each is one HTML file that fetches nothing, so that it opens from a disk, in the KFP page and in MLflow alike; only the explorer
runs scripts. How they look is in the templates (``*.html.j2``); figures are SVG whose colours are the style sheet's variables.
"""

from marble_core.report.compare import write_comparison
from marble_core.report.explorer import write_explorer
from marble_core.report.images import shown_files
from marble_core.report.page import write_report
from marble_core.report.pages import write_pages

__all__ = ["shown_files", "write_comparison", "write_explorer", "write_pages", "write_report"]
