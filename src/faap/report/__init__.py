"""What came out of a run, or of many: HTML pages and terminal tables."""

from faap.report.comparison import comparison_figures, comparison_table, write_comparison
from faap.report.page import MAX_EXAMPLES, Example, read_log, write_report
from faap.report.terminal import summary

__all__ = [
    "MAX_EXAMPLES",
    "Example",
    "comparison_figures",
    "comparison_table",
    "read_log",
    "summary",
    "write_comparison",
    "write_report",
]
