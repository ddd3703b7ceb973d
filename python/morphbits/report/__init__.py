"""The report: one function per figure, one per table, one page."""

from morphbits.report.page import build, build_viewer, summarize

__all__ = ["build", "build_viewer", "summarize"]
