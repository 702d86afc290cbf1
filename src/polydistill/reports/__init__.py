"""A run's reports for people: the page, its figures, tables and model cards."""

from polydistill.reports.page import report_run
from polydistill.reports.tables import results_table

__all__ = ["report_run", "results_table"]
