"""Quality against compute: six sizes of the diffusion transformer, all on the same steps of the same images.

    sora-jax data latents world --model runs/vae-model --clips 8000 --seed 1000000 --max-frames 1 --out runs/images
    sora-jax data latents world --model runs/vae-model --clips 200 --seed 100000000 --max-frames 1 \\
        --out runs/held-out-images
    python launch/sweep.py configs/sweeps/scaling.py --out runs/scaling
    sora-jax evaluate scaling runs/scaling --picture runs/scaling.png

Needs runs/vae-model and runs/tokenizer.model: launch/tiny.sh begins with them. The widths span 26 times
in compute; expect held-out losses of 0.673, 0.608, 0.552, 0.476, 0.451 and 0.416, a law of C^-0.167 through the first
five, and the widest 6 % above what that law says. An hour on two CPU cores beside other work.
"""

CONFIG = "configs/dit.py:images"
WIDTHS = (32, 48, 64, 96, 128, 192)
STEPS = 300
REST = {"data.held_out": "runs/held-out-images", "picture_every": 0}
BEFORE = {"dit.gated": False, "dit.absolute": False, "dit.stem": 0}  # as measured
BEFORE |= {"data.row": 432, "data.rows": 4, "data.text_row": 288, "data.segments": 16}


def sweep(add) -> None:
    for width in WIDTHS:
        size = {"dit.width": width, "dit.mlp": 4 * width, "dit.heads": max(1, width // 32)}
        add(f"width{width}", {**size, "steps": STEPS, "eval_every": STEPS, **REST, **BEFORE})
