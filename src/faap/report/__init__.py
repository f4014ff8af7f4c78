"""What came out of a run: an HTML page and a terminal table."""

from faap.report.page import MAX_EXAMPLES, Example, read_log, write_report
from faap.report.terminal import summary

__all__ = ["MAX_EXAMPLES", "Example", "read_log", "summary", "write_report"]
