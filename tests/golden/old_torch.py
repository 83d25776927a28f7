"""A file as torch before 1.6 wrote it: python old_torch.py [FOLDER]."""

import sys
from pathlib import Path

import torch


def main(folder):
    numbers = torch.arange(24, dtype=torch.float32) / 8
    tensors = {
        "turned": numbers[:12].reshape(3, 4).t(),
        "same_storage": numbers[12:15],
        "half": torch.tensor([0.5, -2.0], dtype=torch.float16),
        "brain": torch.tensor([[1.0], [-3.0]], dtype=torch.bfloat16),
    }
    torch.save(tensors, folder / "old.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "torch")
