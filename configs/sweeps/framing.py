"""Native sizes against square crops: the same images, once as they are and once as the square in their middle.

    sora-jax data latents world --model runs/vae-model --clips 8000 --seed 1000000 --max-frames 1 --square \\
        --out runs/squares
    python launch/sweep.py configs/sweeps/framing.py --out runs/framing
    for kind in native square; do
        sora-jax export runs/framing/$kind --out runs/framing/$kind-model
        sora-jax evaluate world --model runs/framing/$kind-model --frames 1 --seeds 200 --out runs/framing/$kind-judged
    done
    sora-jax evaluate compare runs/framing/square-judged runs/framing/native-judged

Needs runs/images, runs/held-out-images, runs/vae-model and runs/tokenizer.model: see scaling.py and configs/dit.py.
A caption tells of all objects, also of those that the crop cut: the model of squares should learn to cut objects off
(`framing`) and to paint too few of them (`count`). After 300 steps of as many patches each neither paints whole objects
that could be cut off; expect framing of 0.17 for both, counts of 0.18 native and 0.10 square, and colours of 0.72 and
0.85: a crop has 0.82 of the patches, so that a step shows more images. Three quarters of an hour beside other work.
"""

CONFIG = "configs/dit.py:images"
STEPS = 300


def sweep(add) -> None:
    # of scaling.py's width96, which `native` is again
    shared = {"dit.width": 96, "dit.mlp": 384, "dit.heads": 3}
    shared |= {
        "dit.gated": False,
        "dit.absolute": False,
        "dit.stem": 0,
        "data.row": 432,
        "data.rows": 4,
        "data.text_row": 288,
        "data.segments": 16,
    }  # as then
    shared |= {"steps": STEPS, "eval_every": STEPS, "picture_every": 0}
    for name, path in (("native", "runs/images"), ("square", "runs/squares")):
        add(name, {**shared, "data.path": path, "data.held_out": "runs/held-out-images"})
