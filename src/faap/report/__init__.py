"""What came out of a run, or of many: measuring it, HTML pages, terminal tables."""

from faap.report.comparison import comparison_figures as comparison_figures
from faap.report.comparison import write_comparison as write_comparison
from faap.report.measure import measure as measure
from faap.report.page import Example as Example
from faap.report.page import write_report as write_report
from faap.report.terminal import comparison_table as comparison_table
from faap.report.terminal import summary as summary
