"""The committed plans in a table; the planner against steps that were measured: python tests/benchmarks/bench_plan.py

MaxDiffusion publishes the seconds of a training step of Wan 2.1 14B (its README's table of Wan performance): rows of
75,600 tokens, all layers rematerialised. The same steps are planned in launch/plans/maxdiffusion-*.json
(`launch/plans.sh maxdiffusion-v5p` makes one); here the two stand beside each other. Their optimizer, text encoder and
mesh are not ours in every detail: text and VAE are frozen there, our text encoder of T5's base size is trained.
"""

import json
from pathlib import Path

PLANS = Path(__file__).parents[2] / "launch" / "plans"
PUBLISHED = {"maxdiffusion-v5p": (36.0, "4 v5p chips, 1 row"), "maxdiffusion-tpu7x": (24.58, "64 tpu7x chips, 32 rows")}


def row(name: str, facts: dict) -> str:
    """A plan as a row of a table."""
    slices = f"{facts['slices']} x " if facts["slices"] > 1 else ""
    mesh = " ".join(f"{axis} {n}" for axis, n in facts["mesh"].items() if n > 1)
    step, memory, bound = facts["step"], facts["memory"], facts.get("mfu_bound")
    work = f"{step['rows']} x {step['row']:,}" if "row" in step else f"{step['frames']} frames"
    held = f"{memory['total'] / 2**30:.1f} of {memory['usable'] / 2**30:.1f}" if facts["fits"] else "does not fit"
    least, again = facts["bytes_least"], facts["flops"]["recompute"]
    sent = f"{facts['bytes_sent']['ici'] / sum(least.values()):.2f}" if least and facts["fits"] else ""
    again = f"{again - 1:.1%}" if least else ""
    took = (
        f"{facts['seconds']['serial']:.1f} s" + (f", {bound['serial']:.0%}" if bound else "") if facts["fits"] else ""
    )
    return f"| {name} | {slices}{facts['topology']} | {mesh} | {work} | {held} | {again} | {sent} | {took} |"


def main() -> None:
    print("| plan | chips | mesh | rows x patches | GiB a device | repeated | sent / least | roofline, MFU |")
    print("|---|---|---|---|---|---|---|---|")
    for path in sorted(PLANS.glob("*.json")):
        print(row(path.stem, json.loads(path.read_text())))
    print()
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
