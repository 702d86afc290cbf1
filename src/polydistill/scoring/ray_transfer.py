"""A model as what travels well: a small pickle, and its weights as arrays that processes of a machine can share."""

from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Parcel:
    """A model taken apart.

    frame    the pickled model with numbers in place of its tensors
    tensors  each as (bytes, dtype, shape); tied ones stand here once
    """

    frame: bytes
    tensors: list[tuple[npt.NDArray[np.uint8], torch.dtype, tuple[int, ...]]]


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[tuple[npt.NDArray[np.uint8], torch.dtype, tuple[int, ...]]] = []
        self._known: dict[int, int] = {}

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self._known:
            self._known[id(value)] = len(self.tensors)
            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            self.tensors.append((flat.numpy(), value.dtype, tuple(value.shape)))
        return isinstance(value, torch.nn.Parameter), self._known[id(value)]


class _Unpacker(pickle.Unpickler):
    def __init__(self, parcel: Parcel) -> None:
        super().__init__(io.BytesIO(parcel.frame))
        with warnings.catch_warnings():
            # Memory that processes share is read-only, and so is what is done with a teacher.
            warnings.filterwarnings("ignore", message=".*not writable.*")
            self._tensors = [
                torch.from_numpy(flat).view(dtype).reshape(shape) for flat, dtype, shape in parcel.tensors
            ]
        self._parameters: dict[int, torch.nn.Parameter] = {}

    def persistent_load(self, pid: Any) -> Any:
        is_parameter, index = pid
        if not is_parameter:
            return self._tensors[index]
        if index not in self._parameters:
            self._parameters[index] = torch.nn.Parameter(self._tensors[index], requires_grad=False)
        return self._parameters[index]


def pack(model: Any) -> Parcel:
    """Take a model apart: whatever its kind, cut or changed, it is the same one where it is put together."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(model)
    return Parcel(file.getvalue(), packer.tensors)


def unpack(parcel: Parcel) -> Any:
    """The model, for reading alone: its weights are the parcel's memory, which processes may share."""
    return _Unpacker(parcel).load()
