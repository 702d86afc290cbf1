"""The layout of an exported model: what onnxruntime, transformers.js and sentence-transformers look for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from polydistill.disk import Json, links_in, read_json, write_json
from polydistill.models.onnx_export import DATA
from polydistill.models.sentence_files import MOST_TOKENS, write_modules
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.wordpiece import save_loaded
from polydistill.tools.folders import ModelFolder, SentenceFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# transformers.js looks for onnx/model<suffix>.onnx, and dtype `int8` is the suffix `_int8`; the onnx backend
# of sentence-transformers takes onnx/model.onnx, or the file that it is told.
FILES = {"onnx": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}


def write_beside(
    folder: Path,
    source: ModelFolder,
    tokenizer: LoadedTokenizer,
    original: PreTrainedModel,
    *,
    sentences: bool,
) -> None:
    """Write all but the graphs: the tokenizer, config.json and, for a sentence encoder, its modules.

    sentences  whether SentenceTransformer(folder) must load it; then its weights are written too
    """
    save_loaded(tokenizer, folder)
    # A student's tokenizers per language share its ids.
    if (Path(source.model) / "tokenizer").is_dir():
        shutil.copytree(Path(source.model) / "tokenizer", folder / "tokenizer", ignore=links_in)
    original.config.save_pretrained(folder)
    if not sentences:
        return
    original.save_pretrained(folder)
    if isinstance(source, SentenceFolder):
        source.copy_modules(folder)
    else:
        length = min(tokenizer.max_length, MOST_TOKENS)
        write_modules(folder, width=original.config.hidden_size, max_length=length)


def write_browser_settings(folder: Path, *, int8: bool) -> None:
    """Add to config.json what transformers.js cannot guess: which file a browser takes, and separate weights.

    int8  whether there is an int8 graph; by itself a browser would look for `model_quantized.onnx`
    """
    config = read_json(folder / "config.json", dict)
    settings: Json = {"device_config": {"wasm": {"dtype": "int8" if int8 else "fp32"}}}
    separate = [Path(name).name for name in FILES.values() if (folder / (name + DATA)).is_file()]
    if separate:
        settings["use_external_data_format"] = dict.fromkeys(separate, 1)
    write_json(folder / "config.json", config | {"transformers.js_config": settings})
