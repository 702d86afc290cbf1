"""Settings of a start from random weights: see `models.text_start`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polydistill.config.settings import Settings


class AnyStart(Settings):
    """Weights before training, of a model that starts from random ones: see `models.text_start`."""

    bias: Literal["text", "zero"] = Field(
        "text",
        description="Output bias at the logarithm of the pieces' frequencies in the training text, or "
        "`zero`.",
    )
    attention: Literal["mean", "random"] = Field(
        "mean",
        description="Value and output matrices of attentions. `mean`: each passes on the mean of what it "
        "attends to; `random`.",
    )


class Start(AnyStart):
    """The start of a model without a teacher."""

    rows: Literal["text", "random"] = Field(
        "text",
        description="Embedding rows from the co-occurrences of pieces in the training text, or `random`.",
    )


class TaughtStart(AnyStart):
    """The start of a student of teachers that predict in the same pieces."""

    rows: Literal["text", "teachers", "both", "random"] = Field(
        "both",
        description="Embedding rows from the co-occurrences of pieces in the training text (`text`), from "
        "the teachers' rows at the student's width (`teachers`), from the sum of the two (`both`), or "
        "`random`.",
    )
