"""What people read of a run: the page, its figures, the model card."""

from polydistill.reports.card import model_card
from polydistill.reports.page import report_run
from polydistill.reports.tables import results_table

__all__ = ["model_card", "report_run", "results_table"]
