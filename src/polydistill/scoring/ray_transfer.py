"""A model for transfer: a small pickle, and weights as arrays that processes of a machine can share."""

from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Parcel:
    """A model without its tensors, and the tensors.

    frame    the pickled model, with indices in place of tensors
    tensors  each as (bytes, dtype, shape); tied tensors occur once
    """

    frame: bytes
    tensors: list[tuple[npt.NDArray[np.uint8], torch.dtype, tuple[int, ...]]]


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[tuple[npt.NDArray[np.uint8], torch.dtype, tuple[int, ...]]] = []
        self._known: dict[int, int] = {}

    def persistent_id(self, value: object) -> tuple[bool, int] | None:
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self._known:
            self._known[id(value)] = len(self.tensors)
            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            self.tensors.append((flat.numpy(), value.dtype, tuple(value.shape)))
        return isinstance(value, nn.Parameter), self._known[id(value)]


class _Unpacker(pickle.Unpickler):
    def __init__(self, parcel: Parcel) -> None:
        super().__init__(io.BytesIO(parcel.frame))
        with warnings.catch_warnings():
            # Shared memory is read-only; a teacher is only read.
            warnings.filterwarnings("ignore", message=".*not writable.*")
            self._tensors = [
                torch.from_numpy(flat).view(dtype).reshape(shape) for flat, dtype, shape in parcel.tensors
            ]
        self._parameters: dict[int, nn.Parameter] = {}

    def persistent_load(self, pid: tuple[bool, int]) -> Tensor:
        is_parameter, index = pid
        if not is_parameter:
            return self._tensors[index]
        if index not in self._parameters:
            self._parameters[index] = nn.Parameter(self._tensors[index], requires_grad=False)
        return self._parameters[index]


def pack(model: nn.Module) -> Parcel:
    """Separate a model from its tensors; `unpack` restores it exactly, whatever its class and changes."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(model)
    return Parcel(file.getvalue(), packer.tensors)


def unpack(parcel: Parcel) -> nn.Module:
    """The model, read-only: its weights are the parcel's memory, which processes may share."""
    model: nn.Module = _Unpacker(parcel).load()
    return model
