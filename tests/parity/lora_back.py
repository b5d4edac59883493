"""The LoRA that diffusers saved, read by ours and written again, for wan_lora.py to load.

Run by our environment: python tests/parity/lora_back.py MODEL FILE, where MODEL is tests/fixtures/wan imported.
"""

import json
import sys
from pathlib import Path

from sora_jax.weights import lora

if __name__ == "__main__":
    model, out = map(Path, sys.argv[1:])
    fields = json.loads((model / "model.json").read_text())["dit"]
    added = lora.read(Path(__file__).parent.parent / "fixtures" / "wan_lora_peft.safetensors", fields)["dit"]
    lora.write(out, added, fields)
