"""Text per language: read, cleaned, split, packed into examples."""

from polydistill.corpora.corpus import build_corpus
from polydistill.corpora.examples import Examples
from polydistill.corpora.sampling import smoothed_probabilities

__all__ = ["Examples", "build_corpus", "smoothed_probabilities"]
