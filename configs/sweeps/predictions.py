"""What the network predicts, and at which noise it is asked: x0, eps, v and velocity, and three laws of noise levels.

    sora-jax data latents world --model tiny --clips 30000 --seed 5000000 --max-frames 1 --out runs/images
    sora-jax data latents world --model tiny --clips 200 --seed 100000000 --max-frames 1 --out runs/held-out-images
    python launch/sweep.py configs/sweeps/predictions.py --out runs/predictions --jobs 2

Every error is measured as a velocity (train/dit_task.py), so that the held-out losses compare. With noise drawn evenly
expect 0.427 of x0, 0.708 of eps, 0.423 of v and 0.435 of velocity; of v 0.409 with the logit-normal law and 0.416 with
the cosine's. A quarter of an hour on two CPU cores, latents aside.
"""

CONFIG = "configs/dit.py:images"
STEPS = 200
SHARED = {
    "dit.width": 96,
    "dit.heads": 3,
    "dit.mlp": 384,
    "steps": STEPS,
    "eval_every": STEPS,
    "picture_every": 0,
    "vae_model": "tiny",
    "tokenizer": "tiny",
    "data.held_out": "runs/held-out-images",
}


def sweep(add) -> None:
    for predict in ("x0", "eps", "v", "velocity"):
        add(predict, {**SHARED, "flow.predict": predict})
    for law in ("logit_normal", "cosine"):
        add(f"v-{law.replace('_', '-')}", {**SHARED, "flow.predict": "v", "flow.law": law})
