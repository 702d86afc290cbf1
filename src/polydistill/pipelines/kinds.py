"""The table of kinds. A new kind needs a package here, its settings in `config`, and a line in this table."""

from __future__ import annotations

from polydistill.pipelines import pretrain
from polydistill.pipelines.balance import pipeline as balance
from polydistill.pipelines.embed import pipeline as embed
from polydistill.pipelines.extract import pipeline as extract
from polydistill.pipelines.finetune import pipeline as finetune
from polydistill.pipelines.grid import pipeline as grid
from polydistill.pipelines.merge import pipeline as merge
from polydistill.pipelines.pipeline import Pipelines
from polydistill.pipelines.probe import pipeline as probe

PIPELINES: Pipelines = {
    "merge": merge.PIPELINE,
    "extract": extract.PIPELINE,
    "balance": balance.PIPELINE,
    "pretrain": pretrain.PIPELINE,
    "probe": probe.PIPELINE,
    "finetune": finetune.PIPELINE,
    "embed": embed.PIPELINE,
    "grid": grid.PIPELINE,
}
