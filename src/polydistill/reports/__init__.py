"""What people read of a run: the page, its figures, the model card."""

from polydistill.reports.card import model_card
from polydistill.reports.page import build_report

__all__ = ["build_report", "model_card"]
