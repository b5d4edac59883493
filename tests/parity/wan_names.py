"""Every name of the original layout with diffusers' name for it, as diffusers' loader of original files converts it.

The original names are those already in tests/fixtures/wan_names.json, of a transformer of two blocks and a VAE of 2.1;
of the VAE of 2.2 that loader knows nothing.
"""

import json

import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from peer import FIXTURES

if __name__ == "__main__":
    path = FIXTURES / "wan_names.json"
    names = json.loads(path.read_text())
    for part, convert in (("dit", convert_wan_transformer_to_diffusers), ("vae", convert_wan_vae_to_diffusers)):
        # tensors of the original shapes are not needed, only told apart
        state = {name: torch.full((3, 1, 1, 1), i) for i, name in enumerate(names[part])}
        became = {int(value.flatten()[0]): name for name, value in convert(state).items()}
        names[part] = {name: became[i] for i, name in enumerate(names[part])}
    path.write_text(json.dumps(names, indent=0) + "\n")
    print(f"{path.relative_to(FIXTURES.parent.parent)}: {path.stat().st_size:,} bytes")
