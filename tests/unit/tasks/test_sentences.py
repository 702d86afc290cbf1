"""Test sentences: parallel files joined by row or id, scored pairs, and errors that name the column."""

import numpy as np
import pytest

from polydistill.config.embed import ParallelSentences, ScoredPairs
from polydistill.errors import CorpusError
from polydistill.tasks.sentences import read_parallel, read_scored


def files(tmp_path, **texts: str) -> dict[str, str]:
    made = {}
    for name, text in texts.items():
        language, _, ending = name.partition("_")
        made[language] = str(tmp_path / f"{language}.{ending}")
        (tmp_path / f"{language}.{ending}").write_text(text, "utf-8")
    return made


def test_rows_are_joined_by_id_in_the_first_files_order(tmp_path) -> None:
    given = files(
        tmp_path,
        de_tsv="key\ttext\n3\tdrei\n1\teins\n2\tzwei\n",
        en_tsv="text\tkey\none\t1\ntwo\t2\nthree\t3\nfour\t4\n",
    )
    read = read_parallel(ParallelSentences(files=given, id="key"), field="evaluation.retrieval.x")
    assert read == {"de": ["drei", "eins", "zwei"], "en": ["three", "one", "two"]}


def test_without_an_id_line_i_is_the_same_sentence(tmp_path) -> None:
    given = files(tmp_path, de_txt="eins\nzwei \n", en_jsonl='{"text": "one"}\n{"text": "two"}\n')
    read = read_parallel(ParallelSentences(files=given), field="f")
    assert read == {"de": ["eins", "zwei"], "en": ["one", "two"]}


@pytest.mark.parametrize(
    ("texts", "settings", "said"),
    [
        ({"de_txt": "a\nb\nc\n", "en_txt": "a\nb\n"}, {}, r"de 3, en 2.*so row i is not the same"),
        ({"de_txt": "a\n\nc\n", "en_txt": "a\nb\nc\n"}, {}, "line 2.*is blank"),
        ({"de_tsv": "k\ttext\n1\ta\n1\tb\n", "en_txt": "a\nb\n"}, {"id": "k"}, "two rows with k '1'"),
        ({"de_tsv": "k\ttext\n1\ta\n", "en_tsv": "k\ttext\n2\tb\n"}, {"id": "k"}, "share 0 sentences"),
        (
            {"de_tsv": "k\ttext\n1\ta\n", "en_tsv": "k\ttext\n2\tb\n"},
            {"id": "key"},
            r"id 'key'.*no such column \(it has k, text\)",
        ),
        ({"de_tsv": "text\n \n", "en_txt": "a\n"}, {}, "instead of a sentence"),
    ],
)
def test_files_that_are_not_parallel_are_told(tmp_path, texts, settings, said) -> None:
    given = files(tmp_path, **texts)
    with pytest.raises(CorpusError, match=said):
        read_parallel(ParallelSentences(files=given, **settings), field="f")


def test_scored_pairs(tmp_path) -> None:
    given = files(tmp_path, x_tsv="label\tsentence1\tsentence2\n4.5\ta b\tc\n0\td\te\n")
    pairs = read_scored(ScoredPairs(path=given["x"], score="label"), field="f")
    assert (pairs.first, pairs.second) == (["a b", "d"], ["c", "e"])
    np.testing.assert_array_equal(pairs.scores, [4.5, 0.0])
    with pytest.raises(CorpusError, match=r"score 'score'.*no such column"):
        read_scored(ScoredPairs(path=given["x"]), field="f")
    bad = files(tmp_path, y_tsv="score\tsentence1\tsentence2\n4,5\ta b\tc\n0\td\te\n")
    with pytest.raises(CorpusError, match=r"line 2.*'4,5' is not a number"):
        read_scored(ScoredPairs(path=bad["y"]), field="f")
