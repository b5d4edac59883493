"""The planner against steps that were measured: python tests/benchmarks/bench_plan.py

MaxDiffusion publishes the seconds of a training step of Wan 2.1 14B (its README's table of Wan performance): rows of
75,600 tokens, all layers rematerialised. The same steps are planned in launch/plans/maxdiffusion-*.json
(`launch/plans.sh maxdiffusion-v5p` makes one); here the two stand beside each other. Their optimizer, text encoder and
mesh are not ours in every detail: text and VAE are frozen there, our text encoder of T5's base size is trained.
"""

import json
from pathlib import Path

PLANS = Path(__file__).parents[2] / "launch" / "plans"
PUBLISHED = {"maxdiffusion-v5p": (36.0, "4 v5p chips, 1 row"), "maxdiffusion-tpu7x": (24.58, "64 tpu7x chips, 32 rows")}


def main() -> None:
    for name, (seconds, what) in PUBLISHED.items():
        path = PLANS / f"{name}.json"
        if not path.exists():
            print(f"{what}: not planned; launch/plans.sh {name}")
            continue
        facts = json.loads(path.read_text())
        for bound in ("serial", "overlapped"):
            planned = facts["seconds"][bound]
            mfu = facts["mfu_bound"][bound] * planned / seconds
            print(
                f"{what}: {bound} roofline {planned:.2f} s, published {seconds:.2f} s (MFU {mfu:.1%}): "
                f"{planned / seconds - 1:+.1%}, the published step takes {seconds / planned:.2f} times the roofline"
            )


if __name__ == "__main__":
    main()
