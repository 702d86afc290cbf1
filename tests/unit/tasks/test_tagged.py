"""Tagged sentences from treebanks and columns, and messages for damaged ones."""

import lzma

import pytest

from polydistill.errors import CorpusError
from polydistill.tasks.tagged import read_tagged

TREEBANK = """# sent_id = 1
# text = Vámonos al mar.
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\t_\t_\t5\tcase\t_\t_
4\tel\tel\tDET\t_\t_\t5\tdet\t_\t_
5\tmar\tmar\tNOUN\t_\t_\t1\tobl\t_\tSpaceAfter=No
5.1\tes\tser\tAUX\t_\t_\t_\t_\t_\t_
6\t.\t.\tPUNCT\t_\t_\t1\tpunct\t_\t_

# sent_id = 2
1\tSí\tsí\tINTJ\t_\t_\t0\troot\t_\t_
"""

COLUMNS = """-DOCSTART- -X- O O

# id 7
EU NNP B-NP B-ORG
rejects VBZ B-VP O

# DB NN B-NP O
1 CD I-NP O
"""


def test_a_treebank(tmp_path) -> None:
    """Parts of multi-word tokens are words, the tokens themselves and empty nodes are not."""
    path = tmp_path / "es.conllu.xz"
    path.write_bytes(lzma.compress(TREEBANK.encode()))
    first, second = read_tagged(path, field="x")
    assert first.words == ("Vamos", "nos", "a", "el", "mar", ".")
    assert first.tags == ("VERB", "PRON", "ADP", "DET", "NOUN", "PUNCT")
    assert second.words == ("Sí",)
    assert read_tagged(path, field="x", max_sentences=1) == [first]


def test_columns(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(COLUMNS, "utf-8")
    first, second = read_tagged(path, field="x")
    assert (first.words, first.tags) == (("EU", "rejects"), ("B-ORG", "O"))
    # Looking like a comment is not enough: this line has a column of tags, but it comes first.
    assert second.words == ("1",)
    path.write_text("New York\tB-LOC\nis\tO\n#\tO\n# \tO\n", "utf-8")
    assert read_tagged(path, field="x")[0].words == ("New York", "is", "#", "#")
    path.write_text("#\tO\nhash\tO\n", "utf-8")
    assert read_tagged(path, field="x")[0].words == ("#", "hash")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.conllu", "1\tword\n\n", "line 1"),
        ("a.conllu", "1\tword\tword\t_\t_\t_\t0\troot\t_\t_\n\n", "part of speech for 'word'"),
        ("a.bio", "ok\tO\n\nlonely\n", "line 3"),
        ("a.bio", "ok\tO\ntab\t\n", "line 2"),
        ("a.bio", "\n\n", "no tagged sentence"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, text, said) -> None:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    with pytest.raises(CorpusError, match=said):
        read_tagged(path, field="tasks.pos.es.train")


def test_files_that_are_no_text(tmp_path) -> None:
    with pytest.raises(CorpusError, match="tasks"):
        read_tagged(tmp_path / "none.bio", field="tasks.ner.es.test")
    path = tmp_path / "a.bio"
    path.write_bytes(b"ok\tO\n\xff\xfe\tO\n" + b"ok\tO\n" * 50)
    with pytest.raises(CorpusError, match="UTF-8"):
        read_tagged(path, field="x")
