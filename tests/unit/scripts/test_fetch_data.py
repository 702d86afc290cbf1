"""Public data are laid out as recipes read them, from a small stand-in for the network."""

import io
import json
import lzma
import zipfile
from pathlib import Path

import fetch_data
import public_layout
import pytest
from public_sources import MLQA, Entry, File, Piece, Rows, entries
from tests.docs.pages import ROOT

from polydistill.config.finetune import Columns, LabelledSource
from polydistill.tasks.labelled import read_labelled
from polydistill.tasks.tagged import read_tagged

CONLLU = (
    "# text = Das Haus.\n1-2\tDas Haus"
    + "\t_" * 8
    + "\n"
    + "".join(
        f"{place}\t{word}\t_\t{tag}" + "\t_" * 6 + "\n"
        for place, (word, tag) in enumerate([("Das", "DET"), ("Haus", "NOUN"), (".", "PUNCT")], 1)
    )
)
IOB2 = "# text = # Jo in Bern\n1\t#\tB-O\t-\tx\n2\tJo\tB-PER\t-\tx\n3\tin\tO\n4\tBern\tB-OTH\t-\tx\n"
KLUE_TAGS = [
    "B-OG",
    "I-OG",
    "O",
    "O",
    "O",
    "O",
    "B-QT",
    "I-QT",
    "O",
    "O",
    "B-LC",
    "I-LC",
    "I-LC",
    "I-LC",
    "B-PS",
    "B-PS",
    "O",
]
KLUE = "## 컬럼명\n## id\t<경찰:OG>은\n" + "\n".join(
    f"{character}\t{tag}" for character, tag in zip("경찰은 딸(32) 서울 동박김씨", KLUE_TAGS, strict=True)
)
ARTICLE = {
    "paragraphs": [
        {
            "context": "Bern liegt an der Aare.",
            "qas": [{"id": "1", "question": "Wo?", "answers": [{"answer_start": 18, "text": "Aare"}]}],
        }
    ]
}


def question(name: str, start: int = 18) -> dict:
    return {
        "id": name,
        "context": "Bern liegt an der Aare.",
        "question": "Wo?",
        "answers": {"answer_start": [start], "text": ["Aare"]},
    }


class Small:
    """A network of a few lines for everything in the table."""

    def __init__(self, broken: str = "nothing") -> None:
        self.broken, self.asked = broken, []

    def file(self, url: str) -> bytes:
        self.asked.append(url)
        if self.broken in url:
            raise OSError("no such address")
        if url == MLQA:
            return self._zip()
        if url.endswith(".conllu"):
            return "\n\n".join([CONLLU] * (1100 if "hi_pud" in url else 3)).encode()
        if url.endswith(".iob2"):
            return IOB2.encode()
        if "klue-ner" in url:
            return "\n\n".join([KLUE] * 5000).encode()
        if "klue-sts" in url:
            labels = {"label": 3.3, "real-label": 3.285714285714286, "binary-label": 1}
            return json.dumps([{"sentence1": "a b", "sentence2": "c", "labels": labels}]).encode()
        if "masakhane-pos" in url:
            return b"Jambo INTJ\n. PUNCT\n\nHabari NOUN\n"
        if "masakhane-ner" in url:
            return b"Jo B-PER\nleo B-DATE\n# O\n"
        if url.endswith(".jsonl"):
            return b'{"idx": 0, "tags": ["B-LOC", "O"], "tokens": ["Bilbo", "."]}\n'
        if url.endswith(".tsv"):
            return b"index_id\tcategory\ttext\n1\tsport\tEin Spiel.\n"
        return json.dumps({"data": [ARTICLE] * 48}).encode()

    def _zip(self) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for language in ("de", "es", "zh"):
                name = f"MLQA_V1/dev/dev-context-{language}-question-{language}.json"
                archive.writestr(name, json.dumps({"data": [ARTICLE]}))
        return out.getvalue()

    def rows(self, dataset: str, config: str, split: str):
        self.asked.append(f"{dataset}/{config}/{split}")
        if "wikipedia" in dataset:
            return iter([{"text": "A heading\nA paragraph  of more than twenty characters.\n"}] * 9)
        if "wikiann" in dataset:
            return [{"tokens": ["In", "New", "York"], "ner_tags": [0, 5, 6]}]
        if "tydiqa" in dataset:
            return [question(f"{language}-1") for language in ("english", "korean", "swahili")]
        return [
            {"sentence1": 'A "b"\tc', "sentence2": "d", "label": 1},
            {"sentence1": "", "sentence2": "x", "label": 0},
        ]

    def model(self, name: str, folder: Path) -> None:
        self.asked.append(name)
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")


def texts(path: Path) -> str:
    return lzma.decompress(path.read_bytes()).decode("utf-8")


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("public")
    assert fetch_data.main([str(root), "--characters", "100"], Small()) == 0
    return root


def test_everything_that_recipes_read_is_laid_out_and_licensed(laid_out) -> None:
    """Each path of every recipe, also those that only a grid's run or a file it extends has."""
    record = json.loads((laid_out / "fetched.json").read_text("utf-8"))
    wanted = {
        path for recipe in (ROOT / "recipes").rglob("*.yaml") for path in fetch_data.paths_of(str(recipe))
    }
    assert len(wanted) > 100
    assert [path for path in wanted if not (laid_out / path).exists()] == []
    assert wanted <= record.keys()
    assert all(each["licence"] and each["origin"] for each in record.values())
    # What lies in `restricted` says so, and what stands in for something there does too.
    assert all(each["restricted"] for path, each in record.items() if "restricted/" in path)
    assert record["data/ner/de/train.bio.xz"]["restricted"]
    assert not record["data/ud/de/train.conllu.xz"]["restricted"]


def test_polydistill_reads_what_is_laid_out(laid_out) -> None:
    data = laid_out / "data"

    def sentences(path: str) -> list[tuple[str, str]]:
        read = read_tagged(data / path, field="x")
        return [(" ".join(each.words), " ".join(each.tags)) for each in read]

    assert sentences("ud/de/dev.conllu.xz")[2:] == [("Das Haus .", "DET NOUN PUNCT")]
    assert sentences("restricted/ud/sw/test.conllu.xz")[1] == ("Habari", "NOUN")
    assert sentences("ner/en/train.bio.xz") == [("# Jo in Bern", "O B-PER O B-MISC")]
    assert sentences("restricted/ner/sw/dev.bio.xz") == [("Jo leo #", "B-PER O O")]
    assert sentences("restricted/ner/ar-wikiann/dev.bio.xz") == [("In New York", "O B-LOC I-LOC")]
    assert sentences("restricted/ner/eu/test.bio.xz") == [("Bilbo .", "B-LOC O")]
    cuts = [len(sentences(f"ner/ko/{split}.bio.xz")) for split in ("train", "dev", "test")]
    assert cuts == [4000, 400, 600]
    source = LabelledSource(path=str(data / "cls/sib200/de/test.tsv.xz"))
    (topic,) = read_labelled(source, "classification", Columns(text="text", label="category"), field="x")
    assert (topic.texts, topic.label) == (("Ein Spiel.",), "sport")
    source = LabelledSource(path=str(data / "qa/tydiqa/ko/train.json.xz"))
    (asked,) = read_labelled(source, "qa", Columns(), field="x")
    assert asked.question == "Wo?"
    # 38 of the 48 articles, and the whole of the member of a zip file.
    assert len(json.loads(texts(data / "qa/xquad/de/test.json.xz"))["data"]) == 38
    assert len(json.loads(texts(data / "qa/mlqa/zh/dev.json.xz"))["data"]) == 1
    # Headings go, blanks are one, and it ends after the characters that are asked for.
    assert texts(data / "corpora/fr.txt.xz") == "A paragraph of more than twenty characters.\n" * 3
    assert texts(data / "cls/sts/ko/dev.tsv.xz") == (
        "sentence1\tsentence2\tlabel\na b\tc\t3.285714285714286\n"
    )
    assert texts(data / "cls/pawsx/de/dev.tsv.xz") == 'sentence1\tsentence2\tlabel\nA "b" c\td\t1\n'


def test_words_of_characters_end_where_an_entity_does() -> None:
    (block,) = public_layout.tagged_characters(KLUE.encode())
    assert [line.split("\t") for line in block.splitlines()] == [
        ["경찰", "B-ORG"],
        ["은", "O"],
        ["딸(32)", "O"],
        ["서울", "B-LOC"],
        ["동", "I-LOC"],
        ["박", "B-PER"],
        ["김", "B-PER"],
        ["씨", "O"],
    ]


@pytest.mark.parametrize(
    ("read", "raw", "said"),
    [
        (public_layout.treebank, b"<html>not found</html>", "1 columns in place of 10"),
        (public_layout.treebank, b"1\ta\t_\tNOPE" + b"\t_" * 6, "no universal part of speech"),
        (public_layout.tagged_words, b"a\n", "not `word tag`"),
        (public_layout.entities, b"a Q-PER\n", "not an entity's tag"),
        (public_layout.squad, json.dumps({"data": [ARTICLE]}).replace("18", "17").encode(), "no answer at"),
        (lambda raw: public_layout.table(raw, columns=("text",)), b"a\tb\n1\t2\n", "wanted text"),
    ],
)
def test_what_is_not_as_it_should_be_is_refused(read, raw, said) -> None:
    with pytest.raises(ValueError, match=said):
        read(raw)


def test_it_goes_on_where_it_stopped_and_leaves_alone_what_is_not_its_own(tmp_path, capsys) -> None:
    mine = tmp_path / "data/ud/de/dev.conllu.xz"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    only = ["--only", "data/ud/de", "--only", "data/ner/*"]
    assert fetch_data.main([str(tmp_path), *only], Small("de_gsd-ud-test")) == 1
    said = capsys.readouterr().out
    assert "data/ud/de/test.conllu.xz: FAILED: OSError: no such address" in said
    assert "licence: not stated by its authors; RESTRICTED" in said
    # The failure kept nothing back, and left nothing half.
    assert (tmp_path / "data/ner/zh/test.bio.xz").is_file()
    assert not list(tmp_path.rglob("*.partial"))
    damaged = tmp_path / "data/ner/zh/test.bio.xz"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    again = Small()
    assert fetch_data.main([str(tmp_path), *only], again) == 0
    assert [url.rsplit("/", 1)[1] for url in again.asked] == ["de_gsd-ud-test.conllu", "zh_gsd-ud-test.iob2"]
    assert mine.read_bytes() == b"mine"
    assert "data/ud/de/dev.conllu.xz" not in json.loads((tmp_path / "fetched.json").read_text("utf-8"))


def test_what_is_chosen(capsys, tmp_path) -> None:
    def listed(*arguments: str) -> list[str]:
        assert fetch_data.main([str(tmp_path / "none"), "--list", *arguments]) == 0
        return [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]

    assert listed("--only", "data/ud/ko", "--only", "models") == [
        "data/ud/ko",
        "models/albert-kor-base",
        "models/albert-tiny-zh",
    ]
    probe = str(ROOT / "recipes/six-languages/probe-sw.yaml")
    assert listed("--for", probe) == ["data/restricted/ud/sw", "data/restricted/ner/sw"]
    assert listed("--for", probe, "--no-restricted", "--only", "data/ud/ko") == ["data/ud/ko"]
    fetch_data.main([str(tmp_path / "none"), "--list", "--for", probe, "--no-restricted"])
    assert "left out, restricted: data/restricted/ud/sw, data/restricted/ner/sw" in capsys.readouterr().err
    everything = listed()
    assert len(everything) == len(set(everything)) == len(entries(1))
    assert not (tmp_path / "none").exists()
    assert fetch_data.main([str(tmp_path), "--only", "data/ud/xx"]) == 2
    assert "nothing here makes data/ud/xx" in capsys.readouterr().err


def test_too_few_items_are_told() -> None:
    piece = Piece(File("x.conllu"), public_layout.treebank, 2, 5)
    with pytest.raises(ValueError, match="1 items from number 2; wanted 5"):
        fetch_data.items_of(piece, Small())
    empty = Piece(Rows("wikipedia", "x", "train"), lambda rows: [])
    with pytest.raises(ValueError, match="wanted some"):
        fetch_data.items_of(empty, Small())


def test_a_model_without_safetensors_is_not_taken(tmp_path) -> None:
    class Pickle(Small):
        def model(self, name: str, folder: Path) -> None:
            folder.mkdir(parents=True)
            (folder / "pytorch_model.bin").write_bytes(b"x")

    entry = Entry("models/m", "org/m", "mit", {}, model="org/m")
    assert fetch_data.fetch(tmp_path, [entry], Pickle(), lambda line: None) == 1
    assert not (tmp_path / "models/m").exists()
