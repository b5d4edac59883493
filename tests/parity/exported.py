"""What `sora-jax export --format diffusers` wrote of tests/fixtures/wan: diffusers loads it whole, and paints the same.

python tests/parity/exported.py DIR
"""

import sys

import torch
from diffusers import WanPipeline
from peer import FIXTURES, seeded
from safetensors.torch import load_file
from wan_painting import painted

if __name__ == "__main__":
    seeded()
    latents, frames = painted(WanPipeline.from_pretrained(sys.argv[1]), False)
    before = load_file(FIXTURES / "wan_painting.safetensors")
    torch.testing.assert_close(latents, before["one/latents"], rtol=0, atol=1e-6)
    assert (frames.int() - before["one/frames"].int()).abs().max() <= 1
    print(f"diffusers paints with {sys.argv[1]} as with the weights it was made from")
