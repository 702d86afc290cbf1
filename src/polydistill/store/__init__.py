"""The store of teachers' predictions: Arrow shards with a manifest."""

from polydistill.store.reader import Store, StoreRow
from polydistill.store.writer import ScoredExample, StoreWriter

__all__ = ["ScoredExample", "Store", "StoreRow", "StoreWriter"]
