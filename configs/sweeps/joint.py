"""Images and videos together against videos alone: what do images teach a transformer of video?

    one="world --model tiny --scene count=1"
    sora-jax data latents $one --clips 40000 --seed 7100000 --max-frames 1 --max-pixels 4096 --out runs/one
    sora-jax data latents $one --clips 14000 --seed 17000000 --max-frames 9 --max-pixels 2688 --out runs/small-clips
    sora-jax data latents $one --clips 100 --seed 117000000 --max-frames 9 --max-pixels 2688 --out runs/held-out-small
    python launch/sweep.py configs/sweeps/joint.py --out runs/joint --jobs 2
    for kind in joint video; do
        sora-jax export runs/joint/$kind --out runs/joint/$kind-model
        sora-jax evaluate world --model runs/joint/$kind-model --scene count=1 --frames 9 \\
            --out runs/joint/$kind-judged
    done
    sora-jax evaluate compare runs/joint/video-judged runs/joint/joint-judged
    python tests/benchmarks/bench_side_by_side.py runs/joint/video-model runs/joint/joint-model --scene count=1 \\
        --size 48x40 --frames 9 --out configs/sweeps/joint.png

The same network, steps and patches a step; what it is asked for is video. More than half of the joint one's patches are
of images, so that it sees half of the clips. Expect a held-out loss of 0.533 of the model of videos and 0.552 of the
joint one, shapes of 0.30 and 0.28, counts of 0.38 and 0.25. The trainings take seventeen minutes.
"""

CONFIG = "configs/dit.py:small"
STEPS = 1000


def sweep(add) -> None:
    shared = {"dit.width": 96, "dit.mlp": 384, "dit.heads": 3}
    shared |= {"vae_model": "tiny", "tokenizer": "tiny", "data.held_out": "runs/held-out-small"}
    shared |= {"steps": STEPS, "opt.schedule": "cosine", "eval_every": 500, "save_every": 100, "picture_every": 0}
    add("video", {**shared, "data.path": "runs/small-clips"})
    add("joint", {**shared, "data.path": "runs/one,runs/small-clips"})
