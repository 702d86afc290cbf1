"""The K likeliest pieces by groups equal torch's topk over all pieces."""

import hypothesis.strategies as st
import torch
from hypothesis import given

from polydistill.scoring.predict import GROUP, likeliest, read_rows


@given(
    rows=st.integers(1, 5),
    size=st.integers(1, 4 * GROUP),
    top_k=st.integers(1, 12),
    levels=st.integers(2, 500),
    seed=st.integers(0, 1000),
    biased=st.booleans(),
    spare=st.integers(0, 40),
)
def test_rows_are_read_as_by_topk(rows, size, top_k, levels, seed, biased, spare) -> None:
    """Few levels make many ties; spare rows of the model count as tail and are never among the likeliest."""
    draw = torch.Generator().manual_seed(seed)
    top_k = min(top_k, size)
    logits = torch.randint(levels, (rows, size + spare), generator=draw).float() / 7
    bias = torch.randn(size + spare, generator=draw) if biased else None
    gold = torch.randint(size, (rows,), generator=draw)
    gold_logprobs, ids, values = read_rows(logits, bias, gold, size, top_k)
    expected = (logits if bias is None else logits + bias).double().log_softmax(-1)
    torch.testing.assert_close(
        values.double(), expected[:, :size].topk(top_k, dim=-1).values, atol=1e-5, rtol=1e-5
    )
    # Ties may be in any order, so ids are identified by their values, each once.
    assert bool((ids < size).all())
    torch.testing.assert_close(expected.gather(1, ids), values.double(), atol=1e-5, rtol=1e-5)
    assert all(len(set(row)) == top_k for row in ids.tolist())
    torch.testing.assert_close(
        gold_logprobs.double(), expected.gather(1, gold[:, None])[:, 0], atol=1e-5, rtol=1e-5
    )


def test_many_groups() -> None:
    """The likeliest may all lie in one group, or each in its own."""
    together, apart = torch.zeros(1, 64 * GROUP), torch.zeros(1, 64 * GROUP)
    together[0, 5 * GROUP : 5 * GROUP + 8] = torch.arange(8.0) + 1
    apart[0, :: 8 * GROUP] = torch.arange(8.0) + 1
    for logits in (together, apart):
        ids, values = likeliest(logits, 8)
        expected = logits.topk(8, dim=-1)
        assert torch.equal(ids, expected.indices)
        assert torch.equal(values, expected.values)
