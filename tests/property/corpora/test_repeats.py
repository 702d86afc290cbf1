"""Which of equal items is kept, against a plain loop, whatever the number of parts and ranges."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from polydistill.corpora.dedup import EVALUATION, HELD_OUT, TRAIN, Items, find_repeats

# Few hashes, over the whole range, so that there are equal ones in every range.
HASHES = [0, 1, 2**62, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]
PARTS = st.lists(
    st.lists(
        st.tuples(st.sampled_from(HASHES), st.sampled_from([TRAIN, HELD_OUT, EVALUATION]), st.booleans())
    ),
    max_size=6,
)


@given(PARTS, st.integers(1, 9), st.booleans())
def test_the_first_of_equal_items_by_split_is_kept(parts, partition_items, chosen) -> None:
    items = [item for part in parts for item in part]
    order = {HELD_OUT: 0, TRAIN: 1, EVALUATION: 2}
    best: dict[int, tuple[int, int]] = {}
    for place, (key, split, among) in enumerate(items):
        if among or not chosen:
            best[key] = min(best.get(key, (9, 0)), (order[split], place))
    kept = [(among or not chosen) and best[key][1] == place for place, (key, _, among) in enumerate(items)]
    lost = Counter(
        (split, items[best[key][1]][1])
        for place, (key, split, among) in enumerate(items)
        if (among or not chosen) and not kept[place]
    )

    def load(index: int) -> Items:
        hashes, splits, _ = zip(*parts[index], strict=True) if parts[index] else ((), (), ())
        return Items(np.array(hashes, dtype=np.uint64), np.array(splits, dtype=np.uint8))

    with TemporaryDirectory() as folder:
        keep, found = find_repeats(
            Path(folder) / "keep",
            [len(part) for part in parts],
            load,
            among=np.array([among for _, _, among in items], dtype=bool) if chosen else None,
            partition_items=partition_items,
        )
        assert keep.tolist() == kept
    assert found == lost
