"""What the scripts beside this one share: seeded random weights for a torch module, and the file that a fixture is.

The scripts run under `make parity`, in an environment of its own with torch, diffusers and transformers: they write
what those compute into tests/fixtures/, and `make test` compares ours with it, without them.
"""

import json
import sys
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

FIXTURES = Path(__file__).parent.parent / "fixtures"
SEED = 7


def seeded() -> torch.Generator:
    torch.set_num_threads(1)  # sums in one order
    torch.manual_seed(SEED)
    return torch.Generator().manual_seed(SEED)


def roughened(module: torch.nn.Module, generator: torch.Generator, scale: float = 0.1) -> torch.nn.Module:
    """The module with noise on all its weights: none may be zero or one, or what it does would not be seen."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
    """tests/fixtures/NAME.safetensors, in whose header stand the script, its seed and the versions it ran with."""
    versions = {m.__name__: m.__version__ for m in (torch, diffusers, transformers, np)}
    about = {"script": f"tests/parity/{Path(sys.argv[0]).name}", "seed": str(SEED), "versions": json.dumps(versions)}
    FIXTURES.mkdir(exist_ok=True)
    path = FIXTURES / f"{name}.safetensors"
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, path, about)
    print(f"{path.relative_to(FIXTURES.parent.parent)}: {path.stat().st_size:,} bytes")
