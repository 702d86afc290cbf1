"""Exported models under onnxruntime. Packages of `polydistill[onnx]` are imported on first use."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polydistill.errors import ModelError, UserError

PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def require_onnx() -> None:
    """Raise UserError, which says what to install, if a package of the extra `onnx` is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            "export", None, f"{', '.join(missing)} cannot be imported", "pip install 'polydistill[onnx]'"
        )


class OnnxModel:
    """An exported model, run on the CPU.

    path     its .onnx file, with external data beside it
    threads  within an operator; 0: as many as PyTorch uses, which respects OMP_NUM_THREADS
    Raises ModelError for a file that onnxruntime cannot load.
    """

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        require_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises its own types
            raise ModelError(
                "model",
                path.name,
                f"onnxruntime cannot load it ({str(error).strip()[:200]})",
                "check that the file is complete, or export it with another opset",
            ) from error
        self.inputs = [node.name for node in self._session.get_inputs()]
        self.names = [node.name for node in self._session.get_outputs()]

    def outputs(
        self, input_ids: Tensor, attention: Tensor, token_types: Tensor | None = None
    ) -> list[Tensor]:
        """Each of the graph's outputs, float32, of [B, L] ids, attention mask and token types (zeros by
        default).
        """
        feed = {"input_ids": input_ids.numpy(), "attention_mask": attention.numpy()}
        if "token_type_ids" in self.inputs:
            types = torch.zeros_like(input_ids) if token_types is None else token_types
            feed["token_type_ids"] = types.numpy()
        return [torch.from_numpy(values) for values in self._session.run(self.names, feed)]

    def logits(self, input_ids: Tensor, attention: Tensor, token_types: Tensor | None = None) -> Tensor:
        """[B, L, V] logits of a masked language model, of inputs as for `outputs`."""
        return self.outputs(input_ids, attention, token_types)[0]

    def logits_at(self, input_ids: Tensor, attention: Tensor, positions: Tensor) -> Iterator[Tensor]:
        """Logits [N, V] at positions [N] of the flattened batch, for `evaluation.measure_logits`."""
        yield self.logits(input_ids, attention).flatten(0, 1).index_select(0, positions)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's and the quantiser's notes to their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
