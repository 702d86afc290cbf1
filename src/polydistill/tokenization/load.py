"""Loading a model's tokenizer, and its properties."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

from polydistill.config.paths import refuse_missing
from polydistill.config.probe import ProbedModel
from polydistill.disk import fingerprint
from polydistill.errors import ModelError, TokenizerError
from polydistill.limits import is_out_of_memory, is_panic
from polydistill.tokenization.pieces import CONTINUING, ROLES, Piece, Spec, canonical, is_unused, kind_of

# Text of every kind on which a tokenizer's regular expression or map may fail; long runs of one letter make
# some expressions backtrack endlessly.
PROBE = (
    "A sentence, with 1,234.5 numbers. Ñandú naïve ﬁ ½ … "
    "한국어 조각 中文字 ไทย हिन्दी العربية עברית 👩‍👩‍👧 e\u0301 \u200b\t\n "
    + "a" * 60
    + "! "
    + "ab" * 40
    + " " * 40
    + "." * 40
)

# Weights are often padded to a multiple of 64 or 128; more spare rows than this mean that the tokenizer is
# not the model's (an incomplete folder can load silently as a tokenizer of five pieces).
MAX_SPARE_ROWS = 2048
# A token between the two special ones.
SHORTEST = 3
# What a folder with a tokenizer of any kind has one of.
TOKENIZER_FILES = ("*token*", "*vocab*", "merges.txt", "*spiece*", "*spm*", "*.model")


@dataclass(frozen=True)
class LoadedTokenizer:
    """A fast tokenizer and its vocabulary in canonical form.

    backend      the `tokenizers` object
    special_ids  role (`pad`, `unk`, `cls`, `sep`, `mask`) → id
    max_length   longest sequence in tokens that its model accepts, special tokens included
    settings     what its `transformers` wrapper knows in addition to the backend: special tokens by
                 attribute, names of the model's inputs, sides of padding and truncation
    """

    name: str
    backend: Tokenizer
    special_ids: dict[str, int]
    max_length: int
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @cached_property
    def spec(self) -> Spec:
        """The tokenizer as the JSON that `tokenizers` writes."""
        loaded: Spec = json.loads(self.backend.to_str())
        return loaded

    @cached_property
    def fingerprint(self) -> str:
        """Equal for tokenizers that treat every text alike."""
        return fingerprint(
            {"spec": {**self.spec, "truncation": None, "padding": None}, "roles": self.special_ids}
        )

    @cached_property
    def kind(self) -> str:
        """`wordpiece`, `unigram`, `byte_level`, `bpe` or `wordlevel`."""
        return kind_of(self.spec)

    @cached_property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def pieces(self) -> list[Piece | None]:
        """By id, the canonical piece; None for special tokens, unused slots and holes."""
        specials = {token["id"] for token in self.spec["added_tokens"] if token["special"]}
        specials |= set(self.special_ids.values())
        prefix = self.spec["model"].get("continuing_subword_prefix") or CONTINUING
        pieces: list[Piece | None] = [None] * self.size
        for string, index in self.backend.get_vocab(with_added_tokens=True).items():
            if index not in specials and not is_unused(string):
                pieces[index] = canonical(string, self.kind, prefix)
        return pieces

    @cached_property
    def ordinary_ids(self) -> npt.NDArray[np.int64]:
        """Ids of the pieces that text can have; random tokens are drawn from them."""
        return np.array(
            [index for index, piece in enumerate(self.pieces) if piece is not None], dtype=np.int64
        )

    @cached_property
    def is_control(self) -> npt.NDArray[np.bool_]:
        """[size] whether an id is a special token, the unknown one aside."""
        table = np.zeros(self.size, dtype=bool)
        table[list(set(self.special_ids.values()) - {self.special_ids["unk"]})] = True
        return table

    @property
    def lowercases(self) -> bool:
        """Whether `A` and `a` become the same pieces."""
        return self._same("A", "a") and self._same("Б", "б")

    @property
    def strips_accents(self) -> bool:
        """Whether `é` and `e` become the same pieces."""
        return self._same("é", "e")

    def _same(self, first: str, second: str) -> bool:
        normalizer = self.backend.normalizer
        if normalizer is None:
            return False
        return bool(normalizer.normalize_str(first) == normalizer.normalize_str(second))


def load_tokenizer(
    model: str,
    *,
    name: str = "",
    tokenizer: str | None = None,
    revision: str | None = None,
    field: str | None = None,
    roles: Sequence[str] = ROLES,
) -> LoadedTokenizer:
    """Load the tokenizer of a model from a folder or the hub, and check that it is the model's.

    name       the teacher's name in the recipe, for messages
    tokenizer  folder or hub name of the tokenizer, if not the model's
    field      the recipe's field of the model, for messages; by default `teachers.NAME`, or `model`
    roles      the special tokens that it must have; others are found if they are there
    Raises ModelError if nothing can be read there, TokenizerError for a slow tokenizer, one that lacks one of
    `roles`, or one whose size does not match the model's.
    """
    field = field or (f"teachers.{name}" if name else "model")
    origin = tokenizer or model
    refuse_missing(model, field)
    _refuse_bare(origin, field)
    try:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
        with _panics_explained(field, origin):
            loaded = AutoTokenizer.from_pretrained(
                origin, revision=revision, use_fast=True, trust_remote_code=False
            )
    except TokenizerError:
        raise
    except Exception as error:  # `tokenizers` raises plain Exception
        if is_out_of_memory(error):
            raise
        raise ModelError(
            field,
            origin,
            f"cannot be loaded ({_first_line(error)})",
            "name a folder with config.json and a tokenizer, or a model on the hub (and unset "
            "HF_HUB_OFFLINE)",
        ) from error
    backend, special_ids = _checked(loaded, field, origin, roles)
    limit, rows = _limits(config, loaded, field, origin)
    result = LoadedTokenizer(name or Path(model).name, backend, special_ids, limit, _settings(loaded))
    if rows is not None and not result.size <= rows <= max(result.size + MAX_SPARE_ROWS, result.size * 1.02):
        raise TokenizerError(
            field,
            origin,
            f"its tokenizer has {result.size} pieces and the model {rows} rows, so they do not belong "
            "together",
            "check the folder for tokenizer.json, or name the right `tokenizer`",
        )
    return result


def _refuse_bare(folder: str, field: str) -> None:
    """Raise ModelError for a local model without any file of a tokenizer."""
    place = Path(folder)
    if (place / "config.json").is_file() and not any(any(place.glob(name)) for name in TOKENIZER_FILES):
        raise ModelError(
            field,
            folder,
            "holds no tokenizer",
            "save it there (`tokenizer.save_pretrained`), or name its folder beside the model: "
            "{model: FOLDER, tokenizer: OTHER}",
        )


def load_vocabulary(folder: str, *, field: str, roles: Sequence[str] = ROLES) -> LoadedTokenizer:
    """Load a tokenizer alone, from a folder that needs no model in it, or from the hub.

    field  what named it, for messages
    roles  the special tokens that it must have
    Raises TokenizerError if nothing can be read there, for a slow tokenizer, and for one that lacks one of
    `roles`; ModelError if the folder does not exist.
    """
    refuse_missing(folder, field)
    try:
        with _panics_explained(field, folder):
            if (Path(folder) / "tokenizer.json").is_file():
                loaded = PreTrainedTokenizerFast.from_pretrained(folder)
            else:
                loaded = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    except TokenizerError:
        raise
    except Exception as error:  # `tokenizers` raises plain Exception
        if is_out_of_memory(error):
            raise
        raise TokenizerError(
            field,
            folder,
            f"cannot be loaded ({_first_line(error)})",
            "name a folder with tokenizer.json and tokenizer_config.json, such as `polydistill vocab learn` "
            "writes",
        ) from error
    backend, special_ids = _checked(loaded, field, folder, roles)
    length = int(getattr(loaded, "model_max_length", None) or 10**9)
    return LoadedTokenizer(Path(folder).name, backend, special_ids, length, _settings(loaded))


def _checked(
    loaded: PreTrainedTokenizerFast, field: str, origin: str, roles: Sequence[str]
) -> tuple[Tokenizer, dict[str, int]]:
    """(the backend, set to read whole texts, role → id of the special tokens) of a wrapper.

    Raises TokenizerError for a slow tokenizer, one that lacks one of `roles`, and one that cannot read a
    text.
    """
    if not getattr(loaded, "is_fast", False):
        raise TokenizerError(
            field,
            origin,
            "has only a slow tokenizer",
            "save it as tokenizer.json (a `tokenizers` file) first",
        )
    special_ids = _special_ids(loaded, field, origin, roles)
    backend = loaded.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    try:
        with _panics_explained(field, origin):
            backend.encode_batch([PROBE])
    except TokenizerError:
        raise
    except Exception as error:  # `tokenizers` raises plain Exception
        raise TokenizerError(
            field,
            origin,
            f"cannot read a text ({_first_line(error)})",
            "save it again, or name another `tokenizer`",
        ) from error
    return backend, special_ids


def _special_ids(
    loaded: PreTrainedTokenizerFast, field: str, origin: str, roles: Sequence[str]
) -> dict[str, int]:
    """Role → id of a wrapper's special tokens; TokenizerError if one of `roles` is missing or not in the
    vocabulary.
    """
    special_ids: dict[str, int] = {}
    for role in ROLES:
        # Tokenizers like RoBERTa's may define the first and last token only as bos and eos.
        kin = {"cls": "bos", "sep": "eos"}.get(role)
        try:
            index = getattr(loaded, f"{role}_token_id", None)
            if index is None and kin is not None:
                index = getattr(loaded, f"{kin}_token_id")
        except RecursionError:
            # transformers replaces a missing token by the unknown one, and recurses endlessly if that is
            # missing too.
            unknown = loaded.special_tokens_map.get("unk_token")
            raise TokenizerError(
                field,
                origin,
                f"its unknown token {unknown!r} is not in its vocabulary",
                "set unk_token in tokenizer_config.json to the unknown token of tokenizer.json",
            ) from None
        if index is None and role not in roles:
            continue
        if index is None:
            raise TokenizerError(
                field,
                origin,
                f"its tokenizer has no {role} token",
                "a masked language model needs one: is this a decoder, or is tokenizer_config.json missing?",
            )
        special_ids[role] = int(index)
    return special_ids


@contextmanager
def _panics_explained(field: str, origin: str) -> Iterator[None]:
    """Turn a panic of `tokenizers`, which is not an Exception, into a TokenizerError."""
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        raise TokenizerError(
            field,
            origin,
            f"the library `tokenizers` fails on it ({_first_line(error)})",
            "its tokenizer.json has a regular expression or a map that cannot be used: save it again, or "
            "name another `tokenizer`",
        ) from error


def _limits(
    config: PreTrainedConfig, loaded: PreTrainedTokenizerFast, field: str, origin: str
) -> tuple[int, int | None]:
    """(longest sequence in tokens, rows of the model's embeddings if known); ModelError for a non-number."""
    try:
        positions = max_positions(config)
        rows = getattr(config, "vocab_size", None)
        length = min(positions, int(loaded.model_max_length or positions))
        rows = None if rows is None else int(rows)
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(
            field,
            origin,
            f"has a number of positions or pieces that is not a number ({_first_line(error)})",
            "correct max_position_embeddings and vocab_size in config.json, and model_max_length in "
            "tokenizer_config.json",
        ) from error
    if length < SHORTEST:
        raise ModelError(
            field,
            origin,
            f"takes sequences of at most {length} tokens, and one of {SHORTEST} is the shortest with a text "
            "in it",
            "correct max_position_embeddings in config.json, or model_max_length in tokenizer_config.json",
        )
    return length, rows


def max_positions(config: PreTrainedConfig) -> int:
    """The longest sequence in tokens that a model with this configuration takes (relative positions: 1e9)."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return 10**9
    return int(positions) - first_position(config)


def first_position(config: PreTrainedConfig) -> int:
    """The first position of a model's table: models like RoBERTa count from the padding id + 1."""
    roberta_like = {
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "camembert",
        "mpnet",
        "longformer",
        "xmod",
        "data2vec-text",
    }
    return int(config.pad_token_id) + 1 if config.model_type in roberta_like else 0


def _settings(loaded: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The properties of a wrapper that its backend lacks."""
    names = (
        "model_input_names",
        "model_max_length",
        "padding_side",
        "truncation_side",
        "clean_up_tokenization_spaces",
    )
    return {**loaded.special_tokens_map, **{name: getattr(loaded, name) for name in names}}


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def probed_tokenizer(settings: ProbedModel, language: str, *, field: str = "model") -> LoadedTokenizer:
    """A model's tokenizer for a language: the language's own if there is one and the settings allow it."""
    own = Path(settings.model) / "tokenizer" / language
    place = str(own) if settings.tokenizer == "own" and own.is_dir() else None
    return load_tokenizer(settings.model, tokenizer=place, revision=settings.revision, field=field)
