"""Times diffusers' AutoencoderKLWan for tests/benchmarks/bench_vae.py: a line in, a decoding, a line of seconds out."""

import sys
import time

import torch
from diffusers import AutoencoderKLWan
from drawn import drawn, weight

if __name__ == "__main__":
    width, latents = int(sys.argv[1]), tuple(int(n) for n in sys.argv[2].split("x"))
    torch.set_num_threads(2)
    vae = AutoencoderKLWan(base_dim=width).eval()
    vae.load_state_dict({n: torch.from_numpy(weight(n, tuple(p.shape))) for n, p in vae.state_dict().items()})
    z = torch.from_numpy(drawn("z", (1, 16, *latents)))
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.no_grad():
            pixels = vae.decode(z).sample
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(wall, cpu, float(pixels.double().abs().mean()), flush=True)
