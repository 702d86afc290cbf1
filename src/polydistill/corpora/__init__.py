"""Text per language: read, cleaned, split, packed into examples."""

from polydistill.corpora.corpus import build_corpus, sample_texts
from polydistill.corpora.examples import Examples
from polydistill.corpora.sampling import smoothed_probabilities
from polydistill.corpora.sources import source_bytes, source_identity

__all__ = [
    "Examples",
    "build_corpus",
    "sample_texts",
    "smoothed_probabilities",
    "source_bytes",
    "source_identity",
]
