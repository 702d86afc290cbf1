"""Union and renumbered tokenizers against the originals, on small and on published vocabularies."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import bundled_lines
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertTokenizer

from polydistill.errors import TokenizerError
from polydistill.tokenization.drift import segmentation
from polydistill.tokenization.load import LoadedTokenizer, load_tokenizer
from polydistill.tokenization.pieces import STUDENT_SPECIALS
from polydistill.tokenization.student import language_tokenizer, union_tokenizer
from polydistill.tokenization.union import unite
from polydistill.tokenization.wordpiece import save_tokenizer, special_strings

ODD = [
    "",
    " ",
    "a",
    "ÉCOLE école",
    "don't [MASK] ##x ▁y Ġz",
    "日本語と中文",
    "안녕하세요",
    "नमस्ते दुनिया",
    "a\u200db\u0301",
    "😀 x",
    "ﬁ",
    "\ue000x \ue001y",
    "x" * 300,
]


def bert(vocabulary: list[str], *, lowercase: bool) -> LoadedTokenizer:
    backend = BertTokenizer(
        vocab={s: i for i, s in reversed(list(enumerate(vocabulary)))}, do_lower_case=lowercase
    ).backend_tokenizer
    return LoadedTokenizer(
        "bert", backend, {r: backend.token_to_id(s) for r, s in STUDENT_SPECIALS.items()}, 512
    )


def sentencepiece_like(lines: list[str], kind: str) -> LoadedTokenizer:
    """A Unigram with metaspaces, or a byte-level BPE, with RoBERTa's special tokens."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=500, special_tokens=specials, unk_token="<unk>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        trainer = trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.train_from_iterator(lines, trainer)
    ids = {s: tokenizer.token_to_id(s) for s in specials}
    if kind == "unigram":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
        )
    else:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]))
    roles = dict(zip(("cls", "pad", "sep", "unk", "mask"), specials, strict=True))
    return LoadedTokenizer(kind, tokenizer, {role: ids[s] for role, s in roles.items()}, 512)


@pytest.fixture(scope="module")
def made(teachers) -> dict[str, LoadedTokenizer]:
    english, russian = bundled_lines("en", 800), bundled_lines("ru", 800)
    return {
        "wordpiece": load_tokenizer(str(teachers["en"]), name="en"),
        "unigram": sentencepiece_like(russian, "unigram"),
        "byte_level": sentencepiece_like(english + russian, "byte_level"),
    }


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "byte_level"])
def test_a_language_keeps_its_tokenizer_with_the_ids_of_the_student(made, kind, tmp_path) -> None:
    loaded = list(made.values())
    union = unite(loaded)
    teacher = made[kind]
    assert teacher.kind == kind
    mapping = union.maps[list(made).index(kind)]
    own = language_tokenizer(teacher, mapping, union)
    save_tokenizer(own, tmp_path, specials=special_strings(teacher), max_length=512)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*ODD, *bundled_lines("en", 200), *bundled_lines("ru", 200)]:
        expected = mapping[teacher.backend.encode(text).ids].tolist()
        assert own.encode(text).ids == expected
        assert reloaded(text)["input_ids"] == expected
    assert reloaded.mask_token_id == union.special_ids["mask"]
    assert reloaded.pad_token_id == union.special_ids["pad"]


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text(made, text) -> None:
    union = unite(list(made.values()))
    for teacher, mapping in zip(made.values(), union.maps, strict=True):
        own = (
            language_tokenizer(teacher, mapping, union) if teacher.name not in CACHE else CACHE[teacher.name]
        )
        CACHE[teacher.name] = own
        assert own.encode(text).ids == mapping[teacher.backend.encode(text).ids].tolist()


CACHE: dict[str, Tokenizer] = {}


def test_the_union_of_one_bert_tokenises_like_it(made, tmp_path) -> None:
    teacher = made["wordpiece"]
    union = unite([teacher, teacher])
    merged = union_tokenizer(union, [teacher, teacher])
    for text in [*ODD, *bundled_lines("en", 300), *bundled_lines("fr", 300)]:
        assert merged.encode(text).ids == union.maps[0][teacher.backend.encode(text).ids].tolist()
    measured = segmentation(
        merged, language_tokenizer(teacher, union.maps[0], union), bundled_lines("en", 200), unk_id=1
    )
    assert measured.drift == 0
    assert measured.fertility == measured.own_fertility > 1


def test_drift_counts_what_another_teachers_pieces_change() -> None:
    first = bert(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##do", "it"], lowercase=True)
    other = bert(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "undo"], lowercase=True)
    union = unite([first, other])
    merged = union_tokenizer(union, [first, other])
    assert merged.encode("undo it").tokens == ["[CLS]", "undo", "it", "[SEP]"]
    measured = segmentation(
        merged, language_tokenizer(first, union.maps[0], union), ["undo it", "it it"], unk_id=1
    )
    assert measured.drift == pytest.approx(2 / 5)
    assert measured.changed_words == pytest.approx(1 / 4)
    assert measured.fertility == 1.0
    assert measured.own_fertility == pytest.approx(5 / 4)


def test_casing_follows_the_teachers() -> None:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    lower, cased = bert([*specials, "us"], lowercase=True), bert([*specials, "US"], lowercase=False)
    union = unite([lower, cased])
    assert union_tokenizer(union, [lower, cased]).encode("US us").tokens[1:-1] == ["US", "us"]
    assert union_tokenizer(union, [lower, cased], lowercase=True).encode("US us").tokens[1:-1] == ["us", "us"]


def test_a_folder_with_half_a_tokenizer_is_refused(teachers, tmp_path) -> None:
    """BertTokenizer accepts a vocab.txt of five lines without warning."""
    config = json.loads((teachers["en"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 30522}))
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(TokenizerError, match="5 pieces and the model 30522 rows"):
        load_tokenizer(str(tmp_path), name="half")


PUBLISHED = {
    "bert-uncased-en": True,
    "bert-cased-en": False,
    "bert-chinese": True,
    "mbert-cased": False,
    "beto-cased-es": False,
    "beto-uncased-es": True,
    "koelectra-ko": False,
    "alephbert-he": False,
    "distilbert-jp": False,
    "ernie3-zh-40k": True,
}
LANGUAGE = {
    "bert-chinese": "zh",
    "beto-cased-es": "es",
    "beto-uncased-es": "es",
    "koelectra-ko": "ko",
    "alephbert-he": "he",
    "distilbert-jp": "zh",
    "ernie3-zh-40k": "zh",
}


def published(shared: Path, name: str) -> list[str]:
    with lzma.open(
        shared / "vocabularies" / f"{name}.txt.xz", "rt", encoding="utf-8", newline="\n"
    ) as handle:
        vocabulary = [line.rstrip("\n") for line in handle]
    return [*vocabulary, *(s for s in STUDENT_SPECIALS.values() if s not in vocabulary)]


def real_lines(shared: Path, language: str, number: int) -> list[str]:
    with lzma.open(shared / "data" / "corpora" / f"{language}.txt.xz", "rt", encoding="utf-8") as handle:
        return [
            line.strip() for index, line in zip(range(number * 40), handle, strict=False) if index % 40 == 0
        ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_vocabularies(shared, name) -> None:
    """The union of a vocabulary with itself tokenises real text like the original, with duplicates and
    spaces.
    """
    teacher = bert(published(shared, name), lowercase=PUBLISHED[name])
    union = unite([teacher])
    assert len(set(union.strings())) == union.size
    merged = union_tokenizer(union, [teacher])
    own = language_tokenizer(teacher, union.maps[0], union)
    for text in [*ODD, *real_lines(shared, LANGUAGE.get(name, "en"), 300)]:
        expected = union.maps[0][teacher.backend.encode(text).ids].tolist()
        assert merged.encode(text).ids == expected
        assert own.encode(text).ids == expected


def test_union_of_wordpiece_and_a_published_unigram(shared, tmp_path) -> None:
    """XLM-R's vocabulary of 250,002 pieces beside BERT's: ids dense, the Unigram's own segmentation kept."""
    packed = shared / "vocabularies" / "multilingual-e5-small.tokenizer.json.xz"
    with lzma.open(packed, "rt", encoding="utf-8") as handle:
        backend = Tokenizer.from_str(handle.read())
    roles = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    e5 = LoadedTokenizer("e5", backend, {r: backend.token_to_id(s) for r, s in roles.items()}, 512)
    base = bert(published(shared, "bert-uncased-en"), lowercase=True)
    union = unite([base, e5])
    assert set(union.maps[0]) | set(union.maps[1]) == set(range(union.size))
    own = language_tokenizer(e5, union.maps[1], union)
    for text in [
        *ODD,
        *real_lines(shared, "sw", 100),
        *real_lines(shared, "te", 100),
        *real_lines(shared, "zh", 100),
    ]:
        assert own.encode(text).ids == union.maps[1][backend.encode(text).ids].tolist()
    merged = union_tokenizer(union, [base, e5])
    assert np.mean([1 in merged.encode(text).ids for text in real_lines(shared, "en", 100)]) < 0.2


def test_many_texts_are_encoded_as_each_alone(teachers) -> None:
    """More texts than one call encodes."""
    from polydistill.tokenization.encode import ENCODED_AT_ONCE, encode

    tokenizer = load_tokenizer(str(teachers["en"]))
    texts = [f"number {index} of many" for index in range(2 * ENCODED_AT_ONCE + 3)]
    together = encode(tokenizer, texts)
    assert len(together) == len(texts)
    for index in (0, ENCODED_AT_ONCE - 1, ENCODED_AT_ONCE, 2 * ENCODED_AT_ONCE + 2):
        alone = encode(tokenizer, [texts[index]])[0]
        assert np.array_equal(together[index].ids, alone.ids)
        assert np.array_equal(together[index].starts, alone.starts)
