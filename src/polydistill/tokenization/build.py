"""Building tokenizers: the union WordPiece, a language's own with student ids, a WordPiece from text."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from polydistill.errors import TokenizerError
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.pieces import (
    CONTINUING,
    ESCAPE,
    FOREIGN,
    ROLES,
    STUDENT_SPECIALS,
    Spec,
    to_wordpiece,
)
from polydistill.tokenization.union import Union


def union_tokenizer(
    union: Union,
    teachers: Sequence[LoadedTokenizer],
    *,
    lowercase: bool | None = None,
    strip_accents: bool | None = None,
) -> Tokenizer:
    """A real WordPiece model over the union, without `add_tokens`: added tokens match inside other words.

    lowercase, strip_accents  None: if every teacher does. If all teachers have the same normaliser and
                              pre-tokeniser
    (as a single teacher does), the union tokenizer takes both unchanged.
    """
    tokenizer = _wordpiece({string: index for index, string in enumerate(union.strings())})
    first = teachers[0].spec
    alike = all(
        teacher.kind == "wordpiece"
        and teacher.spec["normalizer"] == first["normalizer"]
        and teacher.spec["pre_tokenizer"] == first["pre_tokenizer"]
        for teacher in teachers
    )
    if alike and lowercase is None and strip_accents is None:
        shell = copy.deepcopy(first)
        shell.update(model=json.loads(tokenizer.to_str())["model"], added_tokens=[], post_processor=None)
        shell["model"]["max_input_chars_per_word"] = first["model"].get("max_input_chars_per_word", 100)
        tokenizer = Tokenizer.from_str(json.dumps(shell))
    else:
        tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=any(_splits_chinese(teacher.spec) for teacher in teachers),
            lowercase=all(t.lowercases for t in teachers) if lowercase is None else lowercase,
            strip_accents=all(t.strips_accents for t in teachers) if strip_accents is None else strip_accents,
        )
    return _finish(tokenizer)


def language_tokenizer(teacher: LoadedTokenizer, mapping: npt.NDArray[np.int64], union: Union) -> Tokenizer:
    """The teacher's own tokenizer with its ids renumbered to the student's.

    mapping  [teacher's size] teacher id → student id
    Ids of pieces that the teacher lacks are filled with strings that no text contains.
    """
    spec = copy.deepcopy(teacher.spec)
    spec["truncation"] = spec["padding"] = None
    model = spec["model"]
    filler = [FOREIGN + string for string in union.strings()]
    added = {token["content"] for token in spec["added_tokens"]}
    if teacher.kind == "unigram":
        # A Unigram's ids are the order of its list. Fillers get the lowest score, so that the score of an
        # unknown character, which is computed from it, does not change.
        lowest = min(score for _, score in model["vocab"])
        rows: list[tuple[str, float]] = [(string, lowest) for string in filler]
        for index, (string, score) in enumerate(model["vocab"]):
            if _keeps(mapping, index, teacher):
                rows[mapping[index]] = (string, score)
        model["vocab"] = rows
        model["unk_id"] = ROLES.index("unk") if model.get("unk_id") is not None else None
    else:
        renumbered = {string: index for index, string in enumerate(filler)}
        for string, index in sorted(model["vocab"].items(), key=lambda item: item[1]):
            if _keeps(mapping, index, teacher) or string in added:
                renumbered.pop(filler[mapping[index]], None)
                renumbered[string] = int(mapping[index])
        model["vocab"] = renumbered
    for token in spec["added_tokens"]:
        token["id"] = int(mapping[token["id"]])
    # Special tokens without a role are all mapped to unk, but `tokenizers` accepts only one string per id.
    spec["added_tokens"] = [
        token
        for token in spec["added_tokens"]
        if token["id"] != ROLES.index("unk")
        or token["content"] == teacher.backend.id_to_token(teacher.special_ids["unk"])
    ]
    spec["post_processor"] = renumber_processor(spec.get("post_processor"), mapping)
    try:
        return Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # `tokenizers` raises plain Exception
        raise TokenizerError(
            f"teachers.{teacher.name}",
            None,
            f"its tokenizer cannot be renumbered ({error})",
            "please report this with its tokenizer.json; use the union tokenizer meanwhile",
        ) from error


def train_wordpiece(
    texts: Callable[[], Iterable[str]],
    *,
    size: int,
    lowercase: bool,
    strip_accents: bool | Sequence[str] | None,
    min_frequency: int = 2,
    limit_alphabet: int = 6000,
) -> Tokenizer:
    """A WordPiece with BERT's normalisation, trained on text; special tokens come first, in ROLES' order.

    texts          returns the text from its beginning at each call: characters are counted first
    strip_accents  None: the same as `lowercase`; or the names of the scripts where accents are stripped

    The same text gives the same vocabulary. `tokenizers` by itself numbers the characters within words by the
    order of a hash table, which differs between processes, and breaks ties between merges by those numbers.
    """
    normalizer = _normalizer(lowercase, strip_accents)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    within: set[str] = set()
    for text in texts():
        words = [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]
        counts.update("".join(words))
        within.update(*(word[1:] for word in words))
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    alphabet, rare = sorted(ranked[:limit_alphabet]), ranked[limit_alphabet:]
    blanked = str.maketrans(dict.fromkeys(rare, " "))
    specials = list(STUDENT_SPECIALS.values())
    learner = _wordpiece({STUDENT_SPECIALS["unk"]: 0})
    learner.normalizer = normalizer
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=min_frequency,
        initial_alphabet=alphabet,
        # Entries among the special tokens get the first ids, in this order.
        special_tokens=[
            *specials,
            *(CONTINUING + character for character in alphabet if character in within),
        ],
        show_progress=False,
    )
    learner.train_from_iterator(
        (normalizer.normalize_str(text).translate(blanked) for text in texts()), trainer
    )
    learned = sorted(learner.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    tokenizer = _wordpiece({string: index for index, (string, _) in enumerate(learned[:size])})
    tokenizer.normalizer = normalizer
    return _finish(tokenizer)


def save_tokenizer(
    tokenizer: Tokenizer,
    folder: Path,
    *,
    specials: dict[str, str],
    max_length: int,
    settings: Mapping[str, object] | None = None,
) -> None:
    """Write a folder that `AutoTokenizer` loads.

    specials  role → token
    settings  further arguments of `PreTrainedTokenizerFast` (see `LoadedTokenizer.settings`); they override
              the others
    """
    values: dict[str, object] = {f"{role}_token": token for role, token in specials.items()}
    values |= {"model_max_length": max_length, **(settings or {})}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **values)
    folder.mkdir(parents=True, exist_ok=True)
    wrapped.save_pretrained(folder)


def special_strings(teacher: LoadedTokenizer) -> dict[str, str]:
    """Role → the teacher's own string for it."""
    return {role: str(teacher.backend.id_to_token(index)) for role, index in teacher.special_ids.items()}


def _normalizer(lowercase: bool, strip_accents: bool | Sequence[str] | None) -> normalizers.Normalizer:
    """BERT's normaliser; if scripts are named, it strips marks only from their letters."""
    stripped = strip_accents if strip_accents is None or isinstance(strip_accents, bool) else False
    plain = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, lowercase=lowercase, strip_accents=stripped
    )
    if strip_accents is None or isinstance(strip_accents, bool) or not strip_accents:
        return plain
    letters = "".join(rf"\p{{{script}}}" for script in strip_accents)
    try:
        marks = normalizers.Replace(Regex(rf"(?<=[{letters}])\p{{Mn}}+"), "")
    except Exception as error:  # `tokenizers` raises plain Exception
        raise TokenizerError(
            "tokenizer.strip_accents",
            str(list(strip_accents)),
            f"a script is unknown ({error})",
            "use Unicode's names of scripts, such as Latin, Greek, Cyrillic",
        ) from error
    # Marks are separate characters only in decomposed text; letters that keep their marks are composed again.
    return normalizers.Sequence([plain, normalizers.NFD(), marks, normalizers.NFC()])


def _wordpiece(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token=STUDENT_SPECIALS["unk"], max_input_chars_per_word=100)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _finish(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(list(STUDENT_SPECIALS.values()))
    cls, sep = STUDENT_SPECIALS["cls"], STUDENT_SPECIALS["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, tokenizer.token_to_id(cls)), (sep, tokenizer.token_to_id(sep))],
    )
    return tokenizer


def _keeps(mapping: npt.NDArray[np.int64], index: int, teacher: LoadedTokenizer) -> bool:
    """Whether a renumbered tokenizer has a teacher's entry: every piece, and special tokens with a role."""
    return teacher.pieces[index] is not None or index in teacher.special_ids.values()


def _splits_chinese(spec: Spec) -> bool:
    return '"handle_chinese_chars": true' in json.dumps(spec["normalizer"])


def renumber_processor(processor: Spec | None, mapping: npt.NDArray[np.int64]) -> Spec | None:
    """A post-processor's JSON with its ids renumbered, for every kind that `tokenizers` writes.

    mapping  [old size] old id → new id
    """
    if processor is None:
        return None
    processor = copy.deepcopy(processor)
    kind = processor["type"]
    if kind == "Sequence":
        processor["processors"] = [renumber_processor(part, mapping) for part in processor["processors"]]
    elif kind == "TemplateProcessing":
        for token in processor["special_tokens"].values():
            token["ids"] = [int(mapping[index]) for index in token["ids"]]
    elif kind in ("BertProcessing", "RobertaProcessing"):
        for key in ("cls", "sep"):
            string, index = processor[key]
            processor[key] = [string, int(mapping[index])]
    return processor


def readable(string: str) -> str:
    """A vocabulary entry for human readers, without private-use marks."""
    return string.replace(FOREIGN, "").replace(ESCAPE, "")


__all__ = [
    "language_tokenizer",
    "readable",
    "renumber_processor",
    "save_tokenizer",
    "special_strings",
    "to_wordpiece",
    "train_wordpiece",
    "union_tokenizer",
]
