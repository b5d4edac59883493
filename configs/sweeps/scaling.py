"""Quality against compute: six sizes of the diffusion transformer, all on the same steps of the same images.

    python launch/sweep.py configs/sweeps/scaling.py --out runs/scaling

Needs runs/images, runs/held-out, runs/vae-model and runs/tokenizer.model: see configs/dit.py. Expect
held-out losses that fall with the width. A member is 600 steps.
"""

CONFIG = "configs/dit.py:images"
WIDTHS = (32, 64, 96, 128, 192, 256)


def sweep(add) -> None:
    for width in WIDTHS:
        add(
            f"width{width}",
            {"dit.width": width, "dit.mlp": 4 * width, "dit.heads": max(1, width // 32), "steps": 600},
        )
