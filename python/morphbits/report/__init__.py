"""The report: one function per figure, one per table, one page."""

from morphbits.report.experiment import read
from morphbits.report.page import build, summarize

__all__ = ["build", "read", "summarize"]
