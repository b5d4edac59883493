"""A state dict as torch.save writes it: every type, a parameter, views that are not dense, two names of one storage."""

import torch
from peer import FIXTURES, seeded, write

if __name__ == "__main__":
    generator = seeded()
    draw = lambda *shape: torch.randn(shape, generator=generator)
    module = torch.nn.Linear(3, 2)  # whose state dict has _metadata
    whole = draw(6, 5)
    state = module.state_dict()
    state |= {"float16": draw(4).half(), "bfloat16": draw(2, 3).bfloat16(), "parameter": torch.nn.Parameter(draw(2, 2))}
    state |= {"transposed": whole.T, "part": whole[2:4, 1:4], "whole": whole, "scalar": draw(), "empty": draw(0, 3)}
    torch.save(state, FIXTURES / "wan_files.pth")
    write("wan_files", {name: value.clone() for name, value in state.items()})
