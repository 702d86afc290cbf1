"""Where the public data of recipes come from: the table that `fetch_data.py` works through.

Paths are those below the data root. Names of repositories and data sets are the publishers'. What differs
from the files that our figures were measured on is said in `note`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from public_layout import (
    entities,
    entity_lines,
    entity_rows,
    pairs,
    paragraphs,
    questions,
    scored_pairs,
    squad,
    table,
    tagged_characters,
    tagged_words,
    treebank,
)

GITHUB = "https://raw.githubusercontent.com"
MLQA = "https://dl.fbaipublicfiles.com/MLQA/MLQA_V1.zip"
WIKIPEDIA = "20231101"
SPLITS = ("train", "dev", "test")
SA4, NC_SA3, NC_SA4 = "CC BY-SA 4.0", "CC BY-NC-SA 3.0", "CC BY-NC-SA 4.0"
# Its authors state none; the text is Wikipedia's, CC BY-SA.
UNSTATED = "not stated by its authors"


@dataclass(frozen=True)
class File:
    """A file at an address; `member` is one within a zip file."""

    url: str
    member: str = ""


@dataclass(frozen=True)
class Rows:
    """A split of a data set on the Hugging Face hub."""

    dataset: str
    config: str
    split: str


@dataclass(frozen=True)
class Piece:
    """One file of the layout.

    place  where it comes from
    read   its items from the bytes or rows of that place; raises ValueError
    first, number  the items that are taken; number None: all others
    """

    place: File | Rows
    read: Callable[[Any], list[Any]]
    first: int = 0
    number: int | None = None


@dataclass(frozen=True)
class Entry:
    """A folder or a file of the layout, of one origin and licence.

    files       file's path below the root → its piece; empty for a model
    restricted  non-commercial, or no licence stated: for evaluation
    model       a model's name on the hub
    """

    path: str
    origin: str
    licence: str
    files: Mapping[str, Piece]
    restricted: bool = False
    note: str = ""
    model: str = ""


# Folder → (treebank, prefix of its files, licence).
TREEBANKS = {
    "ud/de": ("German-GSD", "de_gsd", SA4),
    "ud/el": ("Greek-GUD", "el_gud", SA4),
    "ud/en": ("English-EWT", "en_ewt", SA4),
    "ud/es": ("Spanish-AnCora", "es_ancora", "CC BY 4.0"),
    "ud/fi": ("Finnish-TDT", "fi_tdt", SA4),
    "ud/fr": ("French-GSD", "fr_gsd", SA4),
    "ud/hu": ("Hungarian-Szeged", "hu_szeged", NC_SA3),
    "ud/ko": ("Korean-GSD", "ko_gsd", SA4),
    "ud/nl": ("Dutch-LassySmall", "nl_lassysmall", SA4),
    "ud/ru": ("Russian-Taiga", "ru_taiga", SA4),
    "ud/sl": ("Slovenian-SSJ", "sl_ssj", SA4),
    "ud/te": ("Telugu-MTG", "te_mtg", SA4),
    "ud/tr": ("Turkish-BOUN", "tr_boun", SA4),
    "ud/vi": ("Vietnamese-VTB", "vi_vtb", SA4),
    "ud/zh": ("Chinese-GSD", "zh_gsd", SA4),
    "restricted/ud/ar": ("Arabic-PADT", "ar_padt", NC_SA3),
    "restricted/ud/eu": ("Basque-BDT", "eu_bdt", NC_SA3),
    "restricted/ud/hi": ("Hindi-HDTB", "hi_hdtb", NC_SA4),
    "restricted/ud/it": ("Italian-ParTUT", "it_partut", NC_SA4),
    "restricted/ud/tr": ("Turkish-IMST", "tr_imst", NC_SA4),
    "restricted/ud/ur": ("Urdu-UDTB", "ur_udtb", NC_SA4),
}
SPLIT_ANEW = "official splits; ours were cut anew, and trains to 10,000 sentences"
TREEBANK_NOTES = {
    "ud/hu": "stands in for the parts of speech of NYTK-NerKor",
    **dict.fromkeys(("ud/nl", "ud/ru", "ud/zh"), "the newest release; ours is an older one"),
    **dict.fromkeys(("ud/de", "ud/el", "ud/en", "ud/es", "ud/fi", "ud/fr", "ud/sl", "ud/tr"), SPLIT_ANEW),
}
# Language of `ner/` → what WikiAnn stands in for there.
STAND_INS = {
    "de": "GermEval 2014",
    "fr": "Europeana Newspapers",
    "hi": "IL-NER",
    "hu": "NYTK-NerKor",
    "ru": "WikiNER",
    "te": "IL-NER",
    "tr": "Turkish-Wiki-NER",
    "ur": "IL-NER",
}
WIKIANN_LANGUAGES = ("ar", "de", "el", "en", "es", "fi", "it", "tr", "vi", "zh")
CORPORA = (
    "ar",
    "de",
    "el",
    "en",
    "es",
    "eu",
    "fi",
    "fr",
    "hi",
    "hu",
    "it",
    "ko",
    "nl",
    "ru",
    "sl",
    "sw",
    "te",
    "tr",
    "ur",
    "vi",
    "zh",
)
SIB = {
    "de": "deu_Latn",
    "en": "eng_Latn",
    "es": "spa_Latn",
    "fr": "fra_Latn",
    "ko": "kor_Hang",
    "zh": "zho_Hans",
}
TYDIQA = {"en": "english", "ko": "korean", "sw": "swahili"}
XQUAD = ("ar", "de", "en", "es", "zh")
PAWSX = ("de", "en", "es", "fr", "ko", "zh")
MODELS = {
    "albert-kor-base": ("kykim/albert-kor-base", ""),
    "albert-tiny-zh": (
        "voidful/albert_chinese_tiny",
        "stands in for another copy of ALBERT-tiny, whose layers are unrolled to plain BERT: figures differ",
    ),
}


def entries(characters: int) -> list[Entry]:
    """Everything that recipes read, in the layout's order.

    characters  of Wikipedia text for each language
    """
    return [*_corpora(characters), *_treebanks(), *_entities(), *_texts(), *_questions(), *_models()]


def _corpora(characters: int) -> Iterator[Entry]:
    for language in CORPORA:
        read = partial(paragraphs, max_characters=characters)
        place = Rows("wikimedia/wikipedia", f"{WIKIPEDIA}.{language}", "train")
        yield Entry(
            f"data/corpora/{language}",
            f"Wikipedia, wikimedia/wikipedia {WIKIPEDIA}.{language}",
            "CC BY-SA 4.0 and GFDL",
            {f"data/corpora/{language}.txt.xz": Piece(place, read)},
            note="stands in for novels, manuals, reviews and news: figures differ",
        )


def _treebanks() -> Iterator[Entry]:
    for path, (name, prefix, licence) in TREEBANKS.items():
        base = f"{GITHUB}/UniversalDependencies/UD_{name}/master/{prefix}-ud"
        files = {
            f"data/{path}/{split}.conllu.xz": Piece(File(f"{base}-{split}.conllu"), treebank)
            for split in SPLITS
        }
        yield Entry(
            f"data/{path}", f"UD_{name}", licence, files, "NC" in licence, TREEBANK_NOTES.get(path, "")
        )
    # The treebank has a test file alone.
    pud = File(f"{GITHUB}/UniversalDependencies/UD_Hindi-PUD/master/hi_pud-ud-test.conllu")
    cuts = {"train": (0, 600), "dev": (600, 150), "test": (750, 250)}
    files = {f"data/ud/hi/{split}.conllu.xz": Piece(pud, treebank, *cut) for split, cut in cuts.items()}
    yield Entry("data/ud/hi", "UD_Hindi-PUD", "CC BY-SA 3.0", files)
    base = f"{GITHUB}/masakhane-io/masakhane-pos/main/data/swa"
    files = {
        f"data/restricted/ud/sw/{split}.conllu.xz": Piece(File(f"{base}/{split}.txt"), tagged_words)
        for split in SPLITS
    }
    yield Entry("data/restricted/ud/sw", "masakhane-io/masakhane-pos, swa", "CC BY-NC 4.0", files, True)


def _entities() -> Iterator[Entry]:
    columns = partial(entities, word=1, tag=2, separator="\t")
    for language, name, prefix in (("en", "English-EWT", "en_ewt"), ("zh", "Chinese-GSD", "zh_gsd")):
        base = f"{GITHUB}/UniversalNER/UNER_{name}/master/{prefix}-ud"
        files = {
            f"data/ner/{language}/{split}.bio.xz": Piece(File(f"{base}-{split}.iob2"), columns)
            for split in SPLITS
        }
        yield Entry(f"data/ner/{language}", f"UNER_{name}", SA4, files, note=SPLIT_ANEW)
    klue = File(f"{GITHUB}/KLUE-benchmark/KLUE/main/klue_benchmark/klue-ner-v1.1/klue-ner-v1.1_dev.tsv")
    cuts = {"train": (0, 4000), "dev": (4000, 400), "test": (4400, 600)}
    files = {
        f"data/ner/ko/{split}.bio.xz": Piece(klue, tagged_characters, *cut) for split, cut in cuts.items()
    }
    yield Entry("data/ner/ko", "KLUE-NER v1.1, dev set", SA4, files)
    for language, name in STAND_INS.items():
        yield _wikiann(f"data/ner/{language}", language, f"stands in for {name}: figures differ")
    for language in WIKIANN_LANGUAGES:
        yield _wikiann(
            f"data/restricted/ner/{language}-wikiann", language, "official splits; ours are other copies"
        )
    base = f"{GITHUB}/orai-nlp/BasqueGLUE/main/nerc_id"
    files = {
        f"data/restricted/ner/eu/{split}.bio.xz": Piece(File(f"{base}/{name}.jsonl"), entity_lines)
        for split, name in zip(SPLITS, ("train", "val", "test"), strict=True)
    }
    yield Entry("data/restricted/ner/eu", "orai-nlp/BasqueGLUE, NERCid", NC_SA4, files, True)
    base = f"{GITHUB}/masakhane-io/masakhane-ner/main/MasakhaNER2.0/data/swa"
    files = {
        f"data/restricted/ner/sw/{split}.bio.xz": Piece(File(f"{base}/{split}.txt"), entities)
        for split in SPLITS
    }
    yield Entry("data/restricted/ner/sw", "MasakhaNER 2.0, swa", "CC BY-NC 4.0", files, True)


def _wikiann(path: str, language: str, note: str) -> Entry:
    files = {
        f"{path}/{split}.bio.xz": Piece(Rows("unimelb-nlp/wikiann", language, name), entity_rows)
        for split, name in zip(SPLITS, ("train", "validation", "test"), strict=True)
    }
    return Entry(path, f"WikiAnn, unimelb-nlp/wikiann {language}", UNSTATED, files, True, note)


def _texts() -> Iterator[Entry]:
    read = partial(table, columns=("category", "text"))
    for language, code in SIB.items():
        base = f"{GITHUB}/dadelani/sib-200/main/data/annotated/{code}"
        files = {
            f"data/cls/sib200/{language}/{split}.tsv.xz": Piece(File(f"{base}/{split}.tsv"), read)
            for split in SPLITS
        }
        yield Entry(f"data/cls/sib200/{language}", f"SIB-200, {code}", SA4, files)
    klue = File(f"{GITHUB}/KLUE-benchmark/KLUE/main/klue_benchmark/klue-sts-v1.1/klue-sts-v1.1_dev.json")
    files = {"data/cls/sts/ko/dev.tsv.xz": Piece(klue, scored_pairs)}
    yield Entry("data/cls/sts/ko", "KLUE-STS v1.1, dev set", SA4, files)
    for language in PAWSX:
        files = {
            f"data/cls/pawsx/{language}/{split}.tsv.xz": Piece(
                Rows("google-research-datasets/paws-x", language, name), pairs
            )
            for split, name in zip(SPLITS, ("train", "validation", "test"), strict=True)
        }
        yield Entry(
            f"data/cls/pawsx/{language}", f"PAWS-X, {language}", "free for any purpose, on its card", files
        )


def _questions() -> Iterator[Entry]:
    for language, name in TYDIQA.items():
        files = {
            f"data/qa/tydiqa/{language}/{split}.json.xz": Piece(
                Rows("google-research-datasets/tydiqa", "secondary_task", part),
                partial(questions, language=name),
            )
            for split, part in (("train", "train"), ("dev", "validation"))
        }
        yield Entry(
            f"data/qa/tydiqa/{language}", f"TyDiQA-GoldP, {name}", "Apache-2.0; text CC BY-SA 3.0", files
        )
    for language in XQUAD:
        place = File(f"{GITHUB}/google-deepmind/xquad/master/xquad.{language}.json")
        # As ours: the first 38 of 48 articles.
        files = {f"data/qa/xquad/{language}/test.json.xz": Piece(place, squad, 0, 38)}
        yield Entry(f"data/qa/xquad/{language}", f"XQuAD, {language}", SA4, files)
    for language in ("de", "es", "zh"):
        place = File(MLQA, f"MLQA_V1/dev/dev-context-{language}-question-{language}.json")
        files = {f"data/qa/mlqa/{language}/dev.json.xz": Piece(place, squad)}
        yield Entry(
            f"data/qa/mlqa/{language}", f"MLQA dev, {language}", "CC BY-SA 3.0", files, note="ours is a part"
        )
    base = f"{GITHUB}/husseinmozannar/SOQAL/master/data"
    files = {
        f"data/qa/arcd/ar/{split}.json.xz": Piece(File(f"{base}/arcd-{split}.json"), squad)
        for split in ("train", "test")
    }
    yield Entry("data/qa/arcd/ar", "ARCD", "MIT; text CC BY-SA 3.0", files)


def _models() -> Iterator[Entry]:
    for folder, (name, note) in MODELS.items():
        yield Entry(f"models/{folder}", name, "on the model's card", {}, note=note, model=name)
