"""Native sizes against square crops: the same images, once as they are and once as the square in their middle.

    one="world --model tiny --scene count=1 --max-frames 1 --max-pixels 4096"
    sora-jax data latents $one --clips 12000 --seed 7100000 --out runs/one-native
    sora-jax data latents $one --clips 12000 --seed 7100000 --square --out runs/one-square
    sora-jax data latents $one --clips 200 --seed 100100000 --out runs/held-out-one
    python launch/sweep.py configs/sweeps/framing.py --out runs/framing --jobs 2
    for kind in native square; do
        sora-jax export runs/framing/$kind --out runs/framing/$kind-model
        sora-jax evaluate world --model runs/framing/$kind-model --scene count=1 --frames 1 \\
            --out runs/framing/$kind-judged
    done
    sora-jax evaluate compare runs/framing/square-judged runs/framing/native-judged
    python tests/benchmarks/bench_side_by_side.py runs/framing/square-model runs/framing/native-model --scene count=1 \\
        --out configs/sweeps/framing.png

A caption tells of an object also where the crop cut it: the model of squares learns to cut objects off (`framing`), and
in a frame wider than any that it saw it paints them twice (`count`). A step shows both as many patches. Expect framing
of 0.40 native and 0.31 square, counts of 0.77 and 0.65, shapes of 0.27 and 0.28. Latents take ten minutes, the
trainings fifteen, the evaluations five.
"""

CONFIG = "configs/dit.py:one"
STEPS = 1000


def sweep(add) -> None:
    shared = {"dit.width": 96, "dit.mlp": 384, "dit.heads": 3}
    shared |= {"vae_model": "tiny", "tokenizer": "tiny", "data.held_out": "runs/held-out-one"}
    shared |= {"steps": STEPS, "opt.schedule": "cosine", "eval_every": 500, "save_every": 100, "picture_every": 0}
    for kind in ("native", "square"):
        add(kind, {**shared, "data.path": f"runs/one-{kind}"})
