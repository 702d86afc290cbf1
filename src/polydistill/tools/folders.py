"""What is trimmed or exported: a model's folder, a sentence-transformers folder, or GLiNER's."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from huggingface_hub import snapshot_download

from polydistill.config.paths import refuse_missing
from polydistill.disk import Json, fingerprint, hash_file, read_json
from polydistill.errors import ModelError
from polydistill.models.gliner import CONFIG, PICKLE, WEIGHTS, load_gliner, same_bytes_elsewhere, save_gliner
from polydistill.models.kinds import ENCODER, MASKED_LM, SEQUENCES, Kind, kind_of_model, load_kind
from polydistill.models.load import (
    find_file,
    first_line,
    model_config,
    weight_types,
    weights_fingerprint,
    weights_size,
)
from polydistill.tokenization.load import LoadedTokenizer, load_tokenizer, load_vocabulary
from polydistill.tokenization.pieces import ROLES
from polydistill.tokenization.selection import Selection
from polydistill.tokenization.wordpiece import save_loaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODULES = "modules.json"
# Settings of a sentence-transformers folder, beside its modules' folders.
SENTENCE_FILES = ("config_sentence_transformers.json", "sentence_*_config.json", "modules.json", "LICENSE*")
# Without a mask a model without an MLM head is whole.
WITHOUT_MASK = tuple(role for role in ROLES if role != "mask")
# What its first module may be asked for, as sentence-transformers calls it.
TASKS = {"feature-extraction": ENCODER, "sequence-classification": SEQUENCES}
Layout = Literal["model", "sentence-transformers", "GLiNER"]


class ModelFolder:
    """A model that transformers loads, and how it is written.

    kind, layout  what it is
    original      the model; unused  names of weights in its files that its class does not have
    """

    layout: Layout = "model"

    def __init__(
        self, model: str, *, revision: str | None = None, allow_pickle: bool = False, kind: Kind | None = None
    ) -> None:
        self.model, self.revision, self.allow_pickle = model, revision, allow_pickle
        self.kind = kind or kind_of_model(model_config(model, revision=revision), model)
        self.tokenizer = load_tokenizer(
            model, revision=revision, roles=ROLES if self.kind == MASKED_LM else WITHOUT_MASK
        )
        self.unused: list[str] = []

    def load(self, *, dtype: torch.dtype | Literal["auto"] = "auto") -> PreTrainedModel:
        """The model, by default in the precision of its file: float32 holds every number of a file of
        several.
        """
        if len(weight_types(self.model, revision=self.revision)) > 1:
            dtype = torch.float32
        loaded, _, self.unused = load_kind(
            self.model, self.kind, revision=self.revision, allow_pickle=self.allow_pickle, dtype=dtype
        )
        return loaded

    def identity(self) -> str:
        """Equal for folders with the same weights and settings."""
        return weights_fingerprint(self.model, revision=self.revision)

    def size(self) -> int:
        """Bytes of the weights' files."""
        return weights_size(self.model, revision=self.revision)

    def write(
        self, folder: Path, tokenizer: LoadedTokenizer, smaller: PreTrainedModel, selection: Selection
    ) -> None:
        """Write the trimmed tokenizer and model, and what belongs to them."""
        save_loaded(tokenizer, folder, settings=self.tokenizer.settings)
        smaller.save_pretrained(folder)

    def read(self, folder: Path) -> tuple[LoadedTokenizer, PreTrainedModel]:
        """(tokenizer, model) of what was written, in the file's precision."""
        loaded, _, _ = load_kind(str(folder), self.kind, dtype="auto")
        return load_tokenizer(str(folder), roles=tuple(self.tokenizer.special_ids)), loaded

    def written_size(self, folder: Path) -> int:
        """Bytes of the weights' files that were written."""
        return weights_size(str(folder))

    def elsewhere(self, folder: Path) -> Json:
        """What else of the model is the same to the byte, for the record. Raises ModelError if it is not."""
        return {}


class SentenceFolder(ModelFolder):
    """A sentence-transformers folder: an encoder in its first module; all other modules are copied.

    Raises ModelError if its first module is no encoder with a token embedding, or works as something else.
    """

    layout: Layout = "sentence-transformers"

    def __init__(self, model: str, *, revision: str | None = None, allow_pickle: bool = False) -> None:
        self.root = _whole_folder(model, revision)
        modules = read_json(self.root / MODULES, list)
        self.inside, *self.paths = _places(modules, model)
        kind = _kind_of_task(self.root / self.inside, model)
        super().__init__(str(self.root / self.inside), allow_pickle=allow_pickle, kind=kind)

    def identity(self) -> str:
        """Of the weights and of every file that is copied."""
        files = {name: hash_file(self.root / name) for name in self._copied()}
        return fingerprint([super().identity(), files])

    def write(
        self, folder: Path, tokenizer: LoadedTokenizer, smaller: PreTrainedModel, selection: Selection
    ) -> None:
        """As a model's, with the other modules and settings copied."""
        self.copy_modules(folder)
        super().write(folder / self.inside, tokenizer, smaller, selection)

    def copy_modules(self, folder: Path) -> None:
        """Copy the other modules and all settings, as they are."""
        for name in self._copied():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / name, folder / name)

    def read(self, folder: Path) -> tuple[LoadedTokenizer, PreTrainedModel]:
        """As a model's."""
        return super().read(folder / self.inside)

    def written_size(self, folder: Path) -> int:
        """Bytes of the encoder's weights' files that were written."""
        return super().written_size(folder / self.inside)

    def elsewhere(self, folder: Path) -> Json:
        """The files of the other modules."""
        names = self._copied()
        differ = [name for name in names if hash_file(self.root / name) != hash_file(folder / name)]
        if differ:
            raise _changed(self.model, differ)
        return {"files": len(names), "names": names}

    def _copied(self) -> list[str]:
        """Files, by their path in the folder, that are copied as they are; no links out of it."""
        places = [path for pattern in SENTENCE_FILES for path in self.root.glob(pattern)]
        if self.inside:
            places += (self.root / self.inside).glob("sentence_*_config.json")
        for path in filter(None, self.paths):
            places += (self.root / path).rglob("*")
        return sorted(
            {path.relative_to(self.root).as_posix() for path in places if path.is_file() and self._own(path)}
        )

    def _own(self, path: Path) -> bool:
        """Whether a file is in the folder itself, or in the hub's cache, whose files are links."""
        return not path.is_symlink() or "snapshots" in self.root.parts


class GlinerFolder(ModelFolder):
    """A GLiNER folder: the encoder's embedding is trimmed; the rest of the model is kept."""

    layout: Layout = "GLiNER"

    def __init__(self, model: str, *, revision: str | None = None, allow_pickle: bool = False) -> None:
        self.root = _whole_folder(model, revision)
        self.model, self.kind, self.unused = model, ENCODER, []
        self.gliner = load_gliner(self.root, allow_pickle=allow_pickle)
        self.tokenizer = load_vocabulary(str(self.root), field="model", roles=WITHOUT_MASK)
        rows = self.gliner.encoder.config.vocab_size
        if self.tokenizer.size > rows:
            raise ModelError(
                "model",
                model,
                f"its tokenizer has {self.tokenizer.size:,} pieces and its encoder {rows:,} rows",
                "load and save it with GLiNER once, which adds the rows of its own tokens",
            )

    def load(self, *, dtype: torch.dtype | Literal["auto"] = "auto") -> PreTrainedModel:
        """The encoder in the precision of its file, whatever is asked."""
        return self.gliner.encoder

    def identity(self) -> str:
        """Of the weights and the configuration."""
        files = [self.root / name for name in (CONFIG, WEIGHTS, PICKLE)]
        return fingerprint({path.name: hash_file(path) for path in files if path.is_file()})

    def size(self) -> int:
        """Bytes of the weights' file."""
        path = self.root / WEIGHTS
        return (path if path.is_file() else self.root / PICKLE).stat().st_size

    def write(
        self, folder: Path, tokenizer: LoadedTokenizer, smaller: PreTrainedModel, selection: Selection
    ) -> None:
        """The whole model, as safetensors."""
        save_loaded(tokenizer, folder, settings=self.tokenizer.settings)
        save_gliner(self.gliner, smaller, selection.kept, folder)

    def read(self, folder: Path) -> tuple[LoadedTokenizer, PreTrainedModel]:
        """(tokenizer, encoder) of what was written."""
        roles = tuple(self.tokenizer.special_ids)
        return load_vocabulary(str(folder), field="model", roles=roles), load_gliner(folder).encoder

    def written_size(self, folder: Path) -> int:
        """Bytes of the weights' file that was written."""
        return (folder / WEIGHTS).stat().st_size

    def elsewhere(self, folder: Path) -> Json:
        """The weights outside the encoder."""
        written = load_gliner(folder)
        differ = same_bytes_elsewhere(self.gliner, written)
        if differ:
            raise _changed(self.model, differ)
        outside = len(self.gliner.state) - len(self.gliner.encoder.state_dict())
        return {"weights": outside}


def open_folder(
    model: str, *, revision: str | None = None, allow_pickle: bool = False, kind: Kind | None = None
) -> ModelFolder:
    """What a folder or a hub name holds, told by its files.

    kind  how a model's folder is to be read; None: as its `architectures` says
    Raises ModelError for what cannot be trimmed.
    """
    refuse_missing(model, "model")
    if find_file(model, CONFIG, revision):
        return GlinerFolder(model, revision=revision, allow_pickle=allow_pickle)
    if find_file(model, MODULES, revision):
        return SentenceFolder(model, revision=revision, allow_pickle=allow_pickle)
    return ModelFolder(model, revision=revision, allow_pickle=allow_pickle, kind=kind)


def _whole_folder(model: str, revision: str | None) -> Path:
    """A local folder itself; a repository on the hub as a folder of the hub's cache, without exports."""
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(
            snapshot_download(model, revision=revision, ignore_patterns=["*.onnx*", "openvino/*", "*.h5"])
        )
    except Exception as error:  # huggingface_hub raises its own types
        raise ModelError(
            "model",
            model,
            f"cannot be downloaded whole ({first_line(error)})",
            "download it with `hf download`, and give that folder",
        ) from error


def _places(modules: list[Json], model: str) -> list[str]:
    """The paths of a sentence-transformers folder's modules; the first is the encoder's."""
    paths = [str(module.get("path", "")) for module in modules]
    types = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if types[:1] != ["Transformer"]:
        raise ModelError(
            f"model.{MODULES}",
            model,
            f"its first module is {types[0] if types else 'missing'}, which has no encoder to trim",
            "give a model whose first module is a Transformer",
        )
    for path in paths:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ModelError(
                f"model.{MODULES}", path, "is not a folder within the model's", "use an undamaged model"
            )
    return paths


def _kind_of_task(folder: Path, model: str) -> Kind:
    settings = folder / "sentence_bert_config.json"
    task = read_json(settings, dict).get("transformer_task") if settings.is_file() else None
    if (task or "feature-extraction") not in TASKS:
        raise ModelError(
            "model.sentence_bert_config.json.transformer_task",
            task,
            f"{model} computes with its pieces as outputs, whose number a trim changes",
            f"give a model for one of {', '.join(TASKS)}",
        )
    return TASKS[task or "feature-extraction"]


def _changed(model: str, names: Sequence[str]) -> ModelError:
    return ModelError(
        "model",
        model,
        f"{len(names)} of its other parts are not what they were, such as {names[0]}",
        "please report this; nothing was written",
    )
