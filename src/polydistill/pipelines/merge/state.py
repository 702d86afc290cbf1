"""What the stages of a merge hand on to each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polydistill.config.merge import MergeRecipe
from polydistill.disk import fingerprint
from polydistill.pipelines.run_folder import Run
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.union import Union


@dataclass
class Merge:
    """A merge under way: what the stages hand on.

    corpora  language → (folder, what it was made from)
    stores   (language, teacher) → folder
    """

    recipe: MergeRecipe
    run: Run
    tokenizers: dict[str, LoadedTokenizer]
    union: Union
    corpora: dict[str, tuple[Path, dict[str, Any]]]
    stores: dict[tuple[str, str], Path]

    @property
    def maps(self) -> dict[str, npt.NDArray[np.int64]]:
        """Teacher → its ids in the student's vocabulary."""
        return dict(zip(self.recipe.teachers, self.union.maps, strict=True))


def corpora_fingerprints(merge: Merge) -> dict[str, str]:
    """Language → the fingerprint of what its corpus was made from."""
    return {language: fingerprint(inputs) for language, (_, inputs) in merge.corpora.items()}
