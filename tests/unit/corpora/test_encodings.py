"""The encoding of text that is not UTF-8: named if its bytes tell, and only then."""

import gzip
import os
import pathlib
import shutil
import subprocess
from collections import Counter

import pytest
from tests.conftest import bundled_lines

from polydistill.config.shared import Source
from polydistill.corpora.encodings import SAMPLE_BYTES, conversion, likely_encoding
from polydistill.corpora.sources import list_files, read_documents, source_identity
from polydistill.errors import CorpusError
from polydistill.tasks.tagged import read_tagged

# A few sentences of news and tales in each language.
TEXTS = {
    "ko": "한국어는 한반도에서 쓰이는 언어이다. 오늘 서울의 날씨는 맑고 바람이 조금 분다.\n"
    "옛날 어느 마을에 착한 나무꾼이 어머니를 모시고 살았는데, 하루는 산에서 사슴을 만났다.\n",
    "zh": "中国的首都是北京，人口超过两千万。今天天气很好，我们一起去公园散步。\n"
    "从前有一个农夫，他每天在田里工作，晚上回家和家人一起吃饭，生活虽然简单却很快乐。\n",
    "zh-Hant": "臺灣的首都是臺北，今天天氣很好，我們一起去公園散步，晚上再回家吃飯。\n"
    "從前有一個農夫，他每天在田裡工作，生活雖然簡單卻很快樂，鄰居都喜歡他。\n",
    "ja": "日本語は日本で使われている言語です。今日の東京の天気は晴れで、少し風があります。\n"
    "昔々、ある村におじいさんとおばあさんが住んでいました。テレビとラジオもありました。\n",
    "ru": "Столица России - Москва. Сегодня хорошая погода, и мы вместе пойдём гулять в парк.\n"
    "Жил в одной деревне крестьянин, каждый день работал он в поле, а вечером возвращался домой.\n",
    "en": "The capital of England is London. The weather is fine today, and we shall walk in the park.\n",
    "de": "Die Straße führt über die Brücke, und schöne Bäume stehen dort. Müller kauft Äpfel und Öl für "
    "später.\n",
    "fr": "L'été dernier, la fenêtre était fermée. Où êtes-vous allés ? Le garçon a mangé une pêche à "
    "Orléans.\n",
    "it": "La città è bella, perché c'è più libertà e la società è già così. Però chissà se sarà felicità.\n",
    "cs": "Příliš žluťoučký kůň úpěl ďábelské ódy. Děti běžely přes most a říkaly, že večeře už je hotová.\n",
    "tr": "Bugün hava çok güzel, çocuklar bahçede oynuyor. Işık söndü ve yağmur başladı, şemsiye getirdiğim "
    "için.\n",
    "el": "Η πρωτεύουσα της Ελλάδας είναι η Αθήνα. Σήμερα ο καιρός είναι καλός και πάμε στο πάρκο.\n",
    "ja-kanji": (
        "東京都千代田区霞関 大阪府大阪市北区中之島 京都府京都市左京区吉田本町 福岡県福岡市中央区天神\n"
    ),
    "ja-kana": "アイウエオ カキクケコ テレビ ラジオ\n",
    "ko-hanja": (
        "大韓民國 憲法 第一條 民主共和國 國民 主權 法律 政府 選擧 國會 議員 自由 平等 權利 義務 敎育 勤勞\n"
    ),
    "el-capitals": "Η ΠΡΩΤΕΥΟΥΣΑ ΤΗΣ ΕΛΛΑΔΑΣ ΕΙΝΑΙ Η ΑΘΗΝΑ\n",
    "ru-capitals": "СТОЛИЦА РОССИИ - МОСКВА. СЕГОДНЯ ХОРОШАЯ ПОГОДА\n",
    "th": "ภาษาไทยเป็นภาษาที่ใช้ในประเทศไทย วันนี้อากาศดีมากและเราจะไปเดินเล่นในสวน\n",
}
TOLD = [
    ("ko", "cp949", "CP949"),
    ("ko", "utf-16", "UTF-16"),
    ("ko", "utf-16-le", "UTF-16LE"),
    ("ko", "utf-16-be", "UTF-16BE"),
    ("ko", "utf-32", "UTF-32"),
    ("ko", "utf-32-be", "UTF-32BE"),
    ("zh", "gb18030", "GB18030"),
    ("zh", "gbk", "GB18030"),
    ("zh", "utf-16-le", "UTF-16LE"),
    ("zh-Hant", "big5", "BIG5"),
    ("ja", "cp932", "CP932"),
    ("ja", "euc_jp", "EUC-JP"),
    ("ja-kana", "cp932", "CP932"),
    ("ja", "utf-16-be", "UTF-16BE"),
    ("ru", "cp1251", "CP1251"),
    ("ru", "koi8-r", "KOI8-R"),
    ("en", "utf-16-le", "UTF-16LE"),
    ("de", "utf-16", "UTF-16"),
]
# Texts that are valid in many encodings; a name would be a guess.
NOT_TOLD = [
    ("de", "latin-1"),
    ("fr", "latin-1"),
    ("it", "latin-1"),
    ("cs", "cp1250"),
    ("cs", "iso8859-2"),
    ("tr", "cp1254"),
    ("el", "cp1253"),
    ("th", "cp874"),
    ("ru", "cp866"),
    ("ru", "mac_cyrillic"),
    ("ru", "iso8859-5"),
    ("zh", "cp500"),
    ("ru", "cp949"),
    ("ru", "big5"),
    ("ru", "gb2312"),
    ("el", "gb2312"),
    ("el", "cp949"),
    ("ru", "shift_jis"),
    ("ru", "euc_jp"),
    ("ru-capitals", "iso8859-5"),
    ("ru-capitals", "cp866"),
    ("el-capitals", "iso8859-7"),
    ("el-capitals", "cp949"),
    # Japanese and Korean in Chinese characters alone: GB18030's bytes.
    ("ja-kanji", "euc_jp"),
    ("ja-kanji", "cp932"),
    ("ko-hanja", "cp949"),
    ("ko-hanja", "euc_jp"),
]


@pytest.mark.parametrize(("language", "encoding", "name"), TOLD)
def test_an_encoding_that_bytes_tell_is_named(language, encoding, name) -> None:
    """The name is known to iconv, wherever the sample is cut, and decoding with it gives the text."""
    text = TEXTS[language] * 3
    whole = text.encode(encoding)
    for size in range(len(whole) - 9, len(whole) + 1):
        assert likely_encoding(whole[:size]) == name
    assert whole.decode(name) == text
    if shutil.which("iconv"):
        told = ["iconv", "-f", name, "-t", "UTF-8"]
        assert subprocess.run(told, input=whole, capture_output=True, check=True).stdout == text.encode()
    assert f"`iconv -f {name} -t UTF-8`" in conversion(whole)[1]


@pytest.mark.parametrize(("language", "encoding"), NOT_TOLD)
def test_an_encoding_that_bytes_do_not_tell_is_not_named(language, encoding) -> None:
    sample = (TEXTS[language] * 4).encode(encoding, "ignore")
    assert likely_encoding(sample) is None
    reason, remedy = conversion(sample)
    assert "do not show" in reason
    assert "-f ENCODING" in remedy


@pytest.mark.parametrize(
    "sample", [b"", b"\xff", b"\0" * 999, bytes(range(256)) * 40, b"\0\xd8" * 99, b"a" * 99]
)
def test_what_is_no_text_is_not_named(sample) -> None:
    assert likely_encoding(sample) is None


def test_more_text_does_not_change_a_name() -> None:
    """Real text of the demo's languages, with names, figures and quotations of other languages in it."""
    for language, encoding, name in (
        ("ru", "cp1251", "CP1251"),
        ("ru", "koi8-r", "KOI8-R"),
        ("en", "utf-16-be", "UTF-16BE"),
    ):
        raw = "\n".join(bundled_lines(language, 800)).encode(encoding, "ignore")
        for start in range(0, min(len(raw), 40_000), 4000):
            assert likely_encoding(raw[start : start + SAMPLE_BYTES // 8]) == name


def refused(path, **source) -> CorpusError:
    with pytest.raises(CorpusError) as caught:
        list(
            read_documents(
                [Source(path=str(path), **source)], Counter(), field="languages.x.text", block_lines=8
            )
        )
    return caught.value


@pytest.mark.parametrize(
    ("language", "encoding", "name"), [*TOLD, ("de", "latin-1", None), ("it", "cp1252", None)]
)
@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".jsonl"])
def test_the_remedy_names_no_wrong_encoding(tmp_path, language, encoding, name, suffix) -> None:
    """Korean in CP949 or UTF-16 used to be reported as LATIN1: iconv accepts that, with wrong letters."""
    raw = (TEXTS[language] * 150).encode(encoding)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix.endswith(".gz") else raw)
    error = refused(path)
    assert error.field == "languages.x.text[0]"
    assert error.value == str(path)
    assert "not UTF-8" in error.reason
    assert f"-f {name or 'ENCODING'} " in error.remedy
    assert "LATIN1" not in str(error)


@pytest.fixture
def forbidden(monkeypatch):
    """An unreadable path for every user: root may read all."""

    def forbid(path) -> None:
        for method in ("open", "stat", "is_file", "is_dir"):
            original = getattr(pathlib.Path, method)

            def refuse(self, *arguments, original=original, **named):
                if str(self).startswith(str(path)):
                    raise PermissionError(13, "Permission denied", str(self))
                return original(self, *arguments, **named)

            if method == "open" or path.name == "closed":
                monkeypatch.setattr(pathlib.Path, method, refuse)

    return forbid


def expect_unreadable(call, path) -> None:
    with pytest.raises(CorpusError) as caught:
        call()
    assert caught.value.field.startswith("languages.x.text")
    assert str(path) in str(caught.value.value)
    assert "cannot be read (Permission denied)" in caught.value.reason
    assert "permission to read" in caught.value.remedy


def test_a_text_that_may_not_be_read_is_named_as_such(tmp_path, forbidden) -> None:
    """It used to be reported as an output that cannot be written, with another `output` as the remedy."""
    path = tmp_path / "a.txt"
    path.write_text("text\n" * 20)
    sources = [Source(path=str(path))]
    forbidden(path)
    expect_unreadable(lambda: source_identity(sources, field="languages.x.text"), path)
    error = refused(path)
    assert "cannot be read (Permission denied)" in error.reason
    assert "permission to read" in error.remedy


def test_a_text_in_a_folder_that_may_not_be_entered(tmp_path, forbidden) -> None:
    path = tmp_path / "closed" / "a.conllu"
    forbidden(tmp_path / "closed")
    expect_unreadable(lambda: list_files(Source(path=str(path)), "languages.x.text"), path)
    expect_unreadable(lambda: read_tagged(path, field="languages.x.text"), path)


def test_a_folder_below_that_may_not_be_read_is_not_left_out(tmp_path, monkeypatch) -> None:
    """Its text would silently be missing from the corpus."""
    (tmp_path / "a.txt").write_text("text\n")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    expect_unreadable(lambda: list_files(Source(path=str(tmp_path)), "languages.x.text"), tmp_path / "closed")
