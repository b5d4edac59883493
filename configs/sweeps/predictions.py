"""What the network predicts, and at which noise it is asked: x0, eps, v and velocity, and three laws of noise levels.

    sora-jax data latents world --model tiny --clips 30000 --seed 5000000 --max-frames 1 --out runs/images
    sora-jax data latents world --model tiny --clips 200 --seed 100000000 --max-frames 1 --out runs/held-out-images
    python launch/sweep.py configs/sweeps/predictions.py --out runs/predictions --jobs 2

Every error is measured as a velocity (train/dit_task.py), so that the held-out losses compare; expect x0 to lose at low
noise, where a narrow network would have to copy its input, eps at high noise, where what is left is divided by little,
and v and velocity at neither. Ten to twenty minutes on two CPU cores, by estimate.
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
