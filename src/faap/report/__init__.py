"""What came out of a run, or of many: measuring it, HTML pages, terminal tables."""

from faap.report.comparison import comparison_figures, write_comparison
from faap.report.measure import measure
from faap.report.page import Example, write_report
from faap.report.terminal import comparison_table, summary

__all__ = [
    "Example",
    "comparison_figures",
    "comparison_table",
    "measure",
    "summary",
    "write_comparison",
    "write_report",
]
