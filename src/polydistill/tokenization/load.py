"""Loading a model's tokenizer, and what the rest needs to know of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer

from polydistill.config.probe import ProbedModel
from polydistill.disk import fingerprint
from polydistill.errors import ModelError, TokenizerError
from polydistill.limits import is_out_of_memory, is_panic
from polydistill.tokenization.pieces import CONTINUING, ROLES, Piece, canonical, is_unused, kind_of

# Of every kind that a regular expression or a map of a tokenizer may fail on; long runs of one letter are what makes an
# expression try again without end.
PROBE = (
    "A sentence, with 1,234.5 numbers. Ñandú naïve ﬁ ½ … 한국어 조각 中文字 ไทย हिन्दी العربية עברית 👩‍👩‍👧 e\u0301 \u200b\t\n "
    + "a" * 60
    + "! "
    + "ab" * 40
    + " " * 40
    + "." * 40
)

# Weights are often padded to a multiple of 64 or 128; more spare rows than this means that the tokenizer
# is not the model's (a folder with half a tokenizer can load as five pieces without a word).
MAX_SPARE_ROWS = 2048


@dataclass(frozen=True)
class LoadedTokenizer:
    """A fast tokenizer and its vocabulary in canonical form.

    backend      the `tokenizers` object
    special_ids  role (`pad`, `unk`, `cls`, `sep`, `mask`) → id
    max_length   longest sequence in tokens that its model takes, special tokens included
    settings     what its `transformers` wrapper knows beside the backend: special tokens by attribute, names of
                 the model's inputs, sides of padding and truncation
    """

    name: str
    backend: Tokenizer
    special_ids: dict[str, int]
    max_length: int
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The tokenizer as the JSON that `tokenizers` writes."""
        loaded: dict[str, Any] = json.loads(self.backend.to_str())
        return loaded

    @cached_property
    def fingerprint(self) -> str:
        """Equal for tokenizers that do the same to every text."""
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
        found: list[Piece | None] = [None] * self.size
        for string, index in self.backend.get_vocab(with_added_tokens=True).items():
            if index not in specials and not is_unused(string):
                found[index] = canonical(string, self.kind, prefix)
        return found

    @cached_property
    def ordinary_ids(self) -> npt.NDArray[np.int64]:
        """Ids of the pieces that text can have: a random token is drawn from these."""
        return np.array(
            [index for index, piece in enumerate(self.pieces) if piece is not None], dtype=np.int64
        )

    @cached_property
    def control_ids(self) -> npt.NDArray[np.int64]:
        """Ids of the special tokens but the unknown one, ascending."""
        return np.array(sorted(set(self.special_ids.values()) - {self.special_ids["unk"]}), dtype=np.int64)

    @property
    def lowercases(self) -> bool:
        """Whether `A` and `a` become the same pieces."""
        return self._same("A", "a") and self._same("Б", "б")

    @property
    def strips_accents(self) -> bool:
        """Whether `é` and `e` become the same pieces."""
        return self._same("é", "e")

    def _same(self, one: str, other: str) -> bool:
        normalizer = self.backend.normalizer
        if normalizer is None:
            return False
        return bool(normalizer.normalize_str(one) == normalizer.normalize_str(other))


def load_tokenizer(
    model: str,
    *,
    name: str = "",
    tokenizer: str | None = None,
    revision: str | None = None,
    field: str | None = None,
) -> LoadedTokenizer:
    """Load the tokenizer of a model from a folder or the hub, and check that it is the model's.

    name       the teacher's name in the recipe, for messages
    tokenizer  where the tokenizer is, if not with the model
    field      where the recipe has the model, for messages; by default under `teachers`, or `model`
    Raises ModelError if nothing can be read there, TokenizerError for a slow tokenizer, one without a mask
    token or another special token, or one whose size does not fit the model's.
    """
    field = field or (f"teachers.{name}" if name else "model")
    origin = tokenizer or model
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
            "give a folder with config.json and a tokenizer, or a name on the hub (and unset HF_HUB_OFFLINE)",
        ) from error
    if not getattr(loaded, "is_fast", False):
        raise TokenizerError(
            field,
            origin,
            "only a slow tokenizer is there",
            "save it as tokenizer.json (a `tokenizers` file) first",
        )
    special_ids = _special_ids(loaded, field, origin)
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
            "save it anew, or name another `tokenizer`",
        ) from error
    limit, rows = _limits(config, loaded, field, origin)
    result = LoadedTokenizer(name or Path(model).name, backend, special_ids, limit, _settings(loaded))
    if rows is not None and not result.size <= rows <= max(result.size + MAX_SPARE_ROWS, result.size * 1.02):
        raise TokenizerError(
            field,
            origin,
            f"its tokenizer has {result.size} pieces and the model {rows} rows",
            "they do not belong together: check the folder for tokenizer.json, or name the right `tokenizer`",
        )
    return result


def _special_ids(loaded: Any, field: str, origin: str) -> dict[str, int]:
    """Role → id of the special tokens of a wrapper; TokenizerError where one is missing or not in the vocabulary."""
    found: dict[str, int] = {}
    for role in ROLES:
        # RoBERTa's kind calls the first and last token bos and eos only.
        kin = {"cls": "bos", "sep": "eos"}.get(role)
        try:
            index = getattr(loaded, f"{role}_token_id", None)
            if index is None and kin is not None:
                index = getattr(loaded, f"{kin}_token_id")
        except RecursionError:
            # transformers looks a token that is not there up as the unknown token, without end if that is not there.
            unknown = loaded.special_tokens_map.get("unk_token")
            raise TokenizerError(
                field,
                origin,
                f"its unknown token {unknown!r} is not in its vocabulary",
                "set unk_token in tokenizer_config.json to the unknown token of tokenizer.json",
            ) from None
        if index is None:
            raise TokenizerError(
                field,
                origin,
                f"its tokenizer has no {role} token",
                "a masked language model needs one: is this a decoder, or is tokenizer_config.json missing?",
            )
        found[role] = int(index)
    return found


@contextmanager
def _panics_explained(field: str, origin: str) -> Iterator[None]:
    """Turn what `tokenizers` raises where it gives up, which is no Exception, into a TokenizerError."""
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        raise TokenizerError(
            field,
            origin,
            f"the library `tokenizers` gives up on it ({_first_line(error)})",
            "its tokenizer.json has a regular expression or a map that cannot be used: save it anew, or name another "
            "`tokenizer`",
        ) from error


def _limits(config: Any, loaded: Any, field: str, origin: str) -> tuple[int, int | None]:
    """(longest sequence in tokens, rows of the model's table if it says so); ModelError for what is no number."""
    try:
        positions = max_positions(config)
        rows = getattr(config, "vocab_size", None)
        return min(positions, int(loaded.model_max_length or positions)), None if rows is None else int(rows)
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(
            field,
            origin,
            f"has no number of positions or pieces where one must be ({_first_line(error)})",
            "mend max_position_embeddings and vocab_size in config.json, and model_max_length in tokenizer_config.json",
        ) from error


def max_positions(config: Any) -> int:
    """The longest sequence in tokens that a model with this configuration takes (relative positions: 1e9)."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return 10**9
    return int(positions) - first_position(config)


def first_position(config: Any) -> int:
    """Where a model's table of positions begins: RoBERTa and its kin count from behind the padding id."""
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


def _settings(loaded: Any) -> dict[str, Any]:
    """What a wrapper would lose if only its backend were saved."""
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
    """What a model reads a language by: its tokenizer for just that language, where it has one and may use it."""
    own = Path(settings.model) / "tokenizer" / language
    place = str(own) if settings.tokenizer == "own" and own.is_dir() else None
    return load_tokenizer(settings.model, tokenizer=place, revision=settings.revision, field=field)
