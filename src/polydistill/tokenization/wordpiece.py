"""WordPiece: trained on text, normalised, and saved as a tokenizer's folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from polydistill.disk import read_json, write_json
from polydistill.errors import TokenizerError
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.pieces import CONTINUING, STUDENT_SPECIALS, Spec

# Where accents may be stripped: in other scripts marks are vowels or parts of letters.
ACCENTED_SCRIPTS = ("Latin", "Greek", "Cyrillic")


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


def check_filled(tokenizer: Tokenizer, size: int, *, field: str) -> None:
    """Raise TokenizerError if text filled fewer pieces than were asked for.

    field  of the size, for messages
    """
    filled = tokenizer.get_vocab_size()
    if filled < size:
        raise TokenizerError(
            field, size, f"the text fills {filled:,} pieces", f"use {filled} or less, or more text"
        )


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
    # transformers 5 writes its own new name of this class, which transformers 4 does not know.
    path = folder / "tokenizer_config.json"
    written = read_json(path, dict)
    write_json(path, {**written, "tokenizer_class": "PreTrainedTokenizerFast"})


def save_loaded(
    tokenizer: LoadedTokenizer, folder: Path, *, settings: Mapping[str, object] | None = None
) -> None:
    """Write a loaded tokenizer's folder.

    settings  as for `save_tokenizer`; by default its own
    """
    save_tokenizer(
        tokenizer.backend,
        folder,
        specials=special_strings(tokenizer),
        max_length=tokenizer.max_length,
        settings=tokenizer.settings if settings is None else settings,
    )


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
