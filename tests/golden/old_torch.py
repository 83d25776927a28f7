"""Files in the layout of `torch.save` before torch 1.6, with the pickles of several ages.

`old.pth` is written by torch 2.15.0 itself, which still has that layout. `parameters.pth` has what torch 0.x
pickled, and torch 2 still loads: `_rebuild_tensor`, parameters in three forms, a tensor made by its class, storages
with a sixth part. python old_torch.py [FOLDER]
"""

import copyreg
import pickle
import struct
import sys
from collections import OrderedDict
from pathlib import Path

import torch

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
MACHINE = {"protocol_version": VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


class Storage:
    """What stands for a storage in a pickle; `dtype` is a storage class of torch."""

    def __init__(self, key, dtype, form, numbers):
        self.key, self.dtype, self.numbers = key, dtype, numbers
        self.bytes = struct.pack(f"<{len(numbers)}{form}", *numbers)


class Called:
    """Pickles to a call of `function`, and to a state of its result."""

    def __init__(self, function, arguments, state=None):
        self.called = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.called


class Pickler(pickle._Pickler):
    """Python's own, with torch's persistent ids."""

    def persistent_id(self, thing):
        if isinstance(thing, Storage):
            return ("storage", thing.dtype, thing.key, "cuda:0", len(thing.numbers), None)
        return None


def dump(thing, file):
    Pickler(file, protocol=2).dump(thing)


class New:
    """Pickles to a new object of `kind`, by its class, and a state."""

    def __init__(self, kind, arguments, state):
        self.kind, self.arguments, self.state = kind, arguments, state

    @property
    def __class__(self):
        return self.kind

    def __reduce_ex__(self, protocol):
        return (copyreg.__newobj__, (self.kind, *self.arguments), self.state)


def parameters(file):
    single = Storage("94001", torch.FloatStorage, "f", [0.5, 1.5, 2.5, 3.5])
    double = Storage("94002", torch.DoubleStorage, "d", [1.25, -8.0])
    tensor = Called(torch._utils._rebuild_tensor, (single, 0, (2, 2), (2, 1)))
    state = (True, False, None)
    tensors = OrderedDict()
    tensors["plain"] = tensor
    tensors["called"] = Called(torch.nn.parameter.Parameter, (tensor,), state)
    tensors["new"] = New(torch.nn.parameter.Parameter, (tensor,), state)
    tensors["rebuilt"] = Called(torch._utils._rebuild_parameter, (tensor, True, OrderedDict()))
    tensors["by_class"] = New(torch.DoubleTensor, (), (double, 0, (2,), (1,)))
    for thing in (MAGIC, VERSION, MACHINE, tensors, [single.key, double.key]):
        dump(thing, file)
    for storage in (single, double):
        file.write(struct.pack("<q", len(storage.numbers)) + storage.bytes)


def own(file):
    numbers = torch.arange(24, dtype=torch.float32) / 8
    tensors = {
        "turned": numbers[:12].reshape(3, 4).t(),
        "same_storage": numbers[12:15],
        "half": torch.tensor([0.5, -2.0], dtype=torch.float16),
        "brain": torch.tensor([[1.0], [-3.0]], dtype=torch.bfloat16),
    }
    torch.save(tensors, file, _use_new_zipfile_serialization=False)


def main(folder):
    with open(folder / "old.pth", "wb") as file:
        own(file)
    with open(folder / "parameters.pth", "wb") as file:
        parameters(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "torch")
