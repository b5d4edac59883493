"""Times diffusers' WanTransformer3DModel for tests/benchmarks/bench_dit.py.

A line in, "forward" or "step"; a line out: seconds, CPU seconds, bytes beyond what the process held without weights,
and the prediction's mean size or the loss. Arguments: the geometry as JSON, and "eager" or "compiled".
"""

import json
import sys

import torch
from diffusers import WanTransformer3DModel
from drawn import drawn, weight
from measured import measured, rss

if __name__ == "__main__":
    facts, how = json.loads(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(2)
    torch.ones(9, 9) @ torch.ones(9, 9)
    held = rss()
    dit = WanTransformer3DModel(**facts["dit"])
    with torch.no_grad():
        for name, parameter in dit.named_parameters():
            parameter.copy_(torch.from_numpy(weight(name, tuple(parameter.shape))))
    if how == "compiled":
        dit.compile_repeated_blocks(fullgraph=True)
    x, target, text = (torch.from_numpy(drawn(name, tuple(facts[name]))) for name in ("x", "target", "text"))
    timestep = torch.tensor([facts["timestep"]])
    optimizer = torch.optim.AdamW(dit.parameters(), lr=facts["lr"], weight_decay=facts["weight_decay"], fused=True)

    def forward() -> float:
        with torch.no_grad():
            return float(dit(x, timestep, text, return_dict=False)[0].abs().mean())

    def step() -> float:
        loss = (dit(x, timestep, text, return_dict=False)[0] - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    for line in sys.stdin:
        wall, cpu, peak, value = measured({"forward": forward, "step": step}[line.strip()])
        print(wall, cpu, peak - held, value, flush=True)
