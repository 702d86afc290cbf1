"""The files of a sentence encoder, as sentence-transformers lays them out: read, checked and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydistill.disk import Json, fingerprint, hash_file, read_json, write_json
from polydistill.errors import ModelError
from polydistill.models.load import find_file, weights_fingerprint

MODULES, SENTENCE_CONFIG = "modules.json", "sentence_bert_config.json"
MODEL_CONFIG = "config_sentence_transformers.json"
POOLING = "1_Pooling"
# A sentence encoder without positions of its own reads this many tokens.
MOST_TOKENS = 512
# sentence-transformers' settings of pooling → how we call it.
POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}
# Activations of a Dense module, by the last part of the class's name.
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid")


@dataclass(frozen=True)
class DenseFiles:
    """A Dense module on disk: its weights' file and the name of its activation."""

    weights: Path
    activation: str


@dataclass(frozen=True)
class SentenceFiles:
    """What a folder or a hub name says of a sentence encoder, without its weights.

    encoder     what transformers loads: a folder or a hub name
    pooling     `mean`, `cls` or `max`
    tail        the modules after the pooling: Dense layers, and None for a normalisation
    max_length  tokens that it reads; None if the folder does not say
    prompt      text before every sentence
    lowercase   whether text is lower-cased before it is tokenised
    """

    encoder: str
    revision: str | None
    pooling: str
    tail: tuple[DenseFiles | None, ...] = ()
    max_length: int | None = None
    prompt: str = ""
    lowercase: bool = False

    @property
    def normalises(self) -> bool:
        """Whether vectors have length 1."""
        return bool(self.tail) and self.tail[-1] is None

    def identity(self) -> str:
        """Equal for encoders whose vectors are equal, but for what the tokenizer and the length change."""
        tail = [[each.activation, hash_file(each.weights)] if each else "Normalize" for each in self.tail]
        weights = weights_fingerprint(self.encoder, revision=self.revision)
        return fingerprint([weights, self.pooling, tail, self.prompt, self.lowercase])


def read_sentence_files(
    model: str, *, revision: str | None = None, pooling: str | None = None, field: str = "model"
) -> SentenceFiles:
    """What a sentence-transformers folder holds. A plain encoder pools by `pooling`, or mean.

    field  the recipe's field of the model, for messages
    Raises ModelError for modules, poolings and activations that are not known here.
    """
    place = find_file(model, MODULES, revision)
    if place is None:
        return SentenceFiles(model, revision, pooling or "mean")
    modules = [entry for entry in read_json(place, list) if isinstance(entry, dict)]
    kinds = [str(entry.get("type", "")).rpartition(".")[2] for entry in modules]
    paths = [str(entry.get("path", "")) for entry in modules]
    for path in paths:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise _unknown(model, field, f"its module {path!r:.80} is not within its folder")
    if kinds[:2] != ["Transformer", "Pooling"]:
        shown = ", ".join(kinds[:2]) or "none"
        raise _unknown(model, field, f"its first modules are {shown}, not Transformer and Pooling")
    own = _pooling(_module(model, revision, paths[1], "config.json", field), model, field)
    if pooling not in (None, own):
        raise ModelError(
            f"{field}.pooling",
            pooling,
            f"{model} pools by {own}",
            f"leave `pooling` out; another one would not be that model's vectors (its folder says {own})",
        )
    tail = tuple(
        _after_pooling(kind, model, revision, path, field)
        for kind, path in zip(kinds[2:], paths[2:], strict=True)
    )
    encoder, settings = _encoder(model, revision, paths[0], field)
    length = settings.get("max_seq_length")
    return SentenceFiles(
        encoder,
        revision,
        own,
        tail,
        length if type(length) is int else None,
        _prompt(model, revision),
        bool(settings.get("do_lower_case")),
    )


def _encoder(model: str, revision: str | None, inside: str, field: str) -> tuple[str, Json]:
    """(what transformers loads, sentence-transformers' settings of the first module)."""
    if inside and not Path(model).is_dir():
        raise ModelError(
            field,
            model,
            f"keeps its encoder in {inside}, where transformers does not look on the hub",
            "download it with `hf download`, and give that folder",
        )
    encoder = str(Path(model) / inside) if inside else model
    place = find_file(encoder, SENTENCE_CONFIG, revision)
    return encoder, {} if place is None else read_json(place, dict)


def _module(model: str, revision: str | None, path: str, name: str, field: str) -> Path:
    place = find_file(model, f"{path}/{name}" if path else name, revision)
    if place is None:
        raise ModelError(field, model, f"its module {path} has no {name}", "use a complete folder")
    return place


def _pooling(place: Path, model: str, field: str) -> str:
    settings: dict[str, Any] = read_json(place, dict)
    named = settings.get("pooling_mode")
    modes = [named] if isinstance(named, str) else []
    modes = modes or [
        POOLINGS.get(key, key.removeprefix("pooling_mode_"))
        for key, value in settings.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    if len(modes) != 1 or modes[0] not in POOLINGS.values():
        raise _unknown(model, field, f"it pools by {', '.join(map(str, modes)) or 'nothing'}")
    if settings.get("include_prompt") is False:
        raise _unknown(model, field, "its pooling leaves out the tokens of its prompt")
    return modes[0]


def _after_pooling(kind: str, model: str, revision: str | None, path: str, field: str) -> DenseFiles | None:
    """A module after the pooling: a Dense layer's files, or None for a normalisation."""
    if kind == "Normalize":
        return None
    if kind != "Dense":
        raise _unknown(model, field, f"it has a module {kind!r:.60}")
    settings = read_json(_module(model, revision, path, "config.json", field), dict)
    activation = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = activation.rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise _unknown(model, field, f"its Dense module has the activation {activation!r:.80}")
    return DenseFiles(_module(model, revision, path, "model.safetensors", field), name)


def _prompt(model: str, revision: str | None) -> str:
    place = find_file(model, MODEL_CONFIG, revision)
    settings = {} if place is None else read_json(place, dict)
    prompts = settings.get("prompts") or {}
    return str(prompts.get(settings.get("default_prompt_name") or "", ""))


def _unknown(model: str, field: str, what: str) -> ModelError:
    return ModelError(
        field,
        model,
        f"{what}, which is not known here",
        "give a model of the modules Transformer, Pooling (mean, cls or max), Dense and Normalize",
    )


def write_modules(
    folder: Path, *, width: int, max_length: int, pooling: str = "mean", after: Sequence[str] = ()
) -> list[Path]:
    """Write what makes a model's folder one of sentence-transformers; returns the folders of `after`.

    width       of a hidden state
    max_length  tokens of a sentence
    after       the modules after the pooling: `Dense`, `Normalize`; a Dense's own files are the caller's
    The names are those of version 2, which every later version reads.
    """
    names = ["Transformer", "Pooling", *after]
    paths = ["", POOLING, *(f"{number}_{name}" for number, name in enumerate(after, start=2))]
    write_json(
        folder / MODULES,
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
            for index, (name, path) in enumerate(zip(names, paths, strict=True))
        ],
    )
    for path in paths[1:]:
        (folder / path).mkdir()
    write_json(
        folder / POOLING / "config.json",
        {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_max_tokens": pooling == "max",
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    write_json(folder / SENTENCE_CONFIG, {"max_seq_length": max_length, "do_lower_case": False})
    write_json(
        folder / MODEL_CONFIG, {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    )
    return [folder / path for path in paths[2:]]
