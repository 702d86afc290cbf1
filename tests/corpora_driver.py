"""Builds a corpus in several processes, or on Ray; the fault tests kill it.

python -m tests.corpora_driver TEXT FOLDER ENGINE: 1, 2 (processes) or ray
"""

import sys
from pathlib import Path

from tests.part_tasks import words

from polydistill.artefacts import artefact
from polydistill.config.shared import Corpora, Source
from polydistill.corpora import parts
from polydistill.corpora.corpus import CorpusFields, build_corpus
from polydistill.corpora.pool import Alone, Pool, Processes
from polydistill.corpora.ray_pool import RayTasks

PART_BYTES = 20_000


def main(text: str, folder: str, engine: str) -> None:
    """Build the corpus as the corpora stage does: in a folder that keeps what an earlier run left."""
    parts.PART_BYTES = PART_BYTES
    pool: Pool = Alone() if engine == "1" else Processes(2) if engine == "2" else RayTasks(None, 2)
    with artefact(Path(folder), {"text": text}, keep_partial=True) as partial:
        build_corpus(
            partial,
            sources=[Source(path=text)],
            evaluation={},
            settings=Corpora(block_lines=16, held_out_share=0.1),
            count_tokens=words,
            max_tokens=30,
            fields=CorpusFields("text", "evaluation"),
            pool=pool,
        )
    pool.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
