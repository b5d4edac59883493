"""diffusers' flow schedulers, step for step, with a network that is one line (see `velocity`)."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from peer import seeded, write

CASES = [("unipc", 5.0, 20), ("unipc", 3.0, 6), ("unipc", 12.0, 40), ("unipc", 1.0, 2), ("euler", 5.0, 20)]


def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return torch.sin(2 * x) + x * sigma - torch.cos(5 * sigma)


if __name__ == "__main__":
    generator = seeded()
    tensors = {}
    for solver, shift, steps in CASES:
        if solver == "unipc":
            scheduler = UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
            )
        else:
            scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(steps)
        x = torch.randn((1, 16, 2, 2, 2), generator=generator)
        xs = [x]
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.step(velocity(x, scheduler.sigmas[i]), t, x, return_dict=False)[0]
            xs.append(x)
        name = f"{solver}-{shift:g}-{steps}"
        tensors |= {f"{name}/x": torch.stack(xs)[:, 0], f"{name}/sigmas": scheduler.sigmas}
        tensors[f"{name}/timesteps"] = scheduler.timesteps.float()
    write("wan_schedulers", tensors)
