"""Measuring in turns tells what it measures while it does."""

from polydistill.evaluation import cost
from polydistill.evaluation.cost import measure_in_turns


def test_each_figure_is_told_and_each_process_counted(monkeypatch) -> None:
    """Minutes without a word look like a hang."""

    def measured(model, batch, length, part, calls, options):
        return {"seconds": 2.0 if model == "/a/teacher" else 0.5, "peak_bytes": 3 * 2**20}

    monkeypatch.setattr(cost, "in_a_process", measured)
    facts = {
        "/a/teacher": {"pieces": 10, "max_tokens": 64},
        "/a/student": {"pieces": 10**12, "max_tokens": 64},
    }
    said: list[str] = []
    counted: list[tuple[int, int]] = []
    rows = measure_in_turns(
        facts,
        shapes=[(4, 128)],
        rounds=2,
        calls=1,
        names={"/a/teacher": "teacher"},
        say=said.append,
        count=lambda what, done, total, unit, **more: counted.append((done, total)),
    )
    assert said == [
        "teacher, encoder, 4 x 64 tokens: 2 s, 3 MiB",
        "/a/student, encoder, 4 x 64 tokens: 0.5 s, 3 MiB",
        "teacher, model, 4 x 64 tokens: 2 s, 3 MiB",
        "/a/student, model, 4 x 64 tokens: its logits do not fit into memory",
    ]
    assert len(rows) == 4
    assert counted == [(done, 8) for done in range(9)]
