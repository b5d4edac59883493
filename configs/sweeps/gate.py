"""What the gate of the transformer's head (models/dit.py) is worth, for patches of one latent and of four.

    python launch/sweep.py configs/sweeps/gate.py --out runs/gate

Needs runs/images, runs/held-out-images, runs/vae-model and runs/tokenizer.model: see scaling.py.
Rows hold as many patches either way, so that larger ones show four times the images in a step. Expect held-out losses
of 0.470 with the gate and 0.610 without, and of 0.482 and 0.665 with the larger patches; at noise 0.9, where there is
least to pass on, 0.69 and 0.64, and 0.67 twice. Twenty minutes on two CPU cores.
"""

CONFIG = "configs/dit.py:images"
STEPS = 100
SHARED = {"steps": STEPS, "eval_every": STEPS, "picture_every": 0, "ema": 0.98, "data.held_out": "runs/held-out-images"}
SHARED |= {"dit.width": 192, "dit.heads": 3, "dit.mlp": 768, "dit.absolute": False, "dit.stem": 0}  # as measured
ROWS = {(1, 1, 1): {}, (1, 2, 2): {"data.row": 144, "data.rows": 12, "data.text_row": 224, "data.segments": 12}}


def sweep(add) -> None:
    for patch, rows in ROWS.items():
        for gated in (True, False):
            name = f"patch{patch[1]}" + ("-gated" if gated else "")
            add(name, {**SHARED, **rows, "dit.patch": patch, "dit.gated": gated})
