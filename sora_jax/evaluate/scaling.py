"""Quality against compute: the trainings of one sweep that differ in size, a power law through them, and pictures.

    L = a C^-b                                                       (1)
    log L = log a - b log C, least squares over all but the largest  (2)

L: held-out loss at the end; C: floating-point operations of the training, the model's own (`training_flops`, without
recomputation), as its log says. The law has no floor, so it is a law of the range it was fitted in (Kaplan et al. 2020,
arXiv:2001.08361, section 1.2). The largest is predicted from the rest, also when it has not been run yet.

Beside the losses stand what the world's oracle sees in images that each model paints of the same held-out prompts, and
the same prompts and seed painted by each.
"""

import json
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
from jaxtyping import Float

from sora_jax import media
from sora_jax.data import worlds
from sora_jax.errors import InputError
from sora_jax.evaluate import world
from sora_jax.evaluate.report import metrics

SIZE, SEED = (64, 64), 3
PROMPTS = ("a large red circle", "a large blue star", "a yellow triangle and a purple cross")
SCORES = ("color", "shape", "count")


def fit(compute: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """(a, b) of equation (1) by equation (2)."""
    slope, offset = np.polyfit(np.log(compute), np.log(loss), 1)
    return float(np.exp(offset)), float(-slope)


def law(compute, a: float, b: float):
    """Equation (1)."""
    return a * np.power(compute, -b)


def members(sweep: str | Path) -> list[dict]:
    """{"name", "compute" (FLOPs), "loss", "steps", "workdir"} of a sweep's trainings that are done, by compute.

    Raises InputError where fewer than three are.
    """
    found = []
    for path in sorted(Path(sweep).expanduser().glob("*/metrics.jsonl")):
        if not (done := path.parent.with_name(f"{path.parent.name}.json")).is_file():
            continue
        lines = metrics(path)
        judged = [line["eval/loss"] for line in lines if line.get("eval/loss") is not None]
        timed = [line["flops_per_second"] * line["seconds_per_step"] for line in lines if "flops_per_second" in line]
        steps = json.loads(done.read_text())["step"]
        if judged and timed:
            row = {"name": path.parent.name, "compute": float(np.mean(timed)) * steps, "loss": judged[-1]}
            found.append(row | {"steps": steps, "workdir": str(path.parent)})
    if len(found) < 3:
        raise InputError(
            f"{sweep} has {len(found)} finished trainings with held-out losses, 3 make a law: see launch/sweep.py"
        )
    return sorted(found, key=lambda row: row["compute"])


def evaluate(
    sweep: str | Path,
    *,
    seeds: int = 60,
    steps: int | None = None,
    picture: str | None = None,
    expected: float | None = None,
) -> dict:
    """The study of a sweep's folder (`launch/sweep.py --out`); prints a table and a JSON line, and returns the line.

    seeds: held-out prompts of images that the oracle judges, 0 for none; picture: PNG of the curve, PICTURE-samples.png
    beside it; expected: the compute of a training yet to be run, whose loss is then predicted from all that are here.
    Raises InputError as `members`, and where `expected` is not more than the largest.
    """
    from tqdm import tqdm

    rows = members(sweep)
    if expected is not None and expected <= rows[-1]["compute"]:
        raise InputError(f"{expected:g} FLOPs are not beyond the largest training's {rows[-1]['compute']:.3g}")
    known = rows if expected else rows[:-1]
    a, b = fit(*(np.array([row[key] for row in known]) for key in ("compute", "loss")))
    told = {"a": a, "b": b, "fitted": [row["name"] for row in known]}
    if expected:
        told["expected"] = {"compute": expected, "loss": float(law(expected, a, b))}
    else:
        told["predicted"] = {"name": rows[-1]["name"], "loss": float(law(rows[-1]["compute"], a, b))}
        told["predicted"]["measured"] = rows[-1]["loss"]
    bar = tqdm(rows if seeds or picture else [], desc="painting", unit="model", file=sys.stderr, disable=None)
    painted = {row["name"]: paint(row, seeds, steps) for row in bar}
    for row in rows if seeds else ():
        row |= painted[row["name"]]["scores"]
    if picture:
        draw(rows, told, Path(picture))
        clips = [painted[row["name"]]["clips"] for row in rows]
        draw_samples(rows, clips, Path(picture).with_stem(Path(picture).stem + "-samples"))
    result = {**told, "members": [{k: v for k, v in row.items() if k != "workdir"} for row in rows]}
    print(table(result))
    print(json.dumps(result))
    return result


def paint(row: dict, seeds: int, steps: int | None) -> dict:
    """What a member paints: the oracle's scores over held-out images, and PROMPTS at one seed."""
    from sora_jax.train.export import export

    with tempfile.TemporaryDirectory() as folder:
        model = export(row["workdir"], folder)
    scores = {}
    if seeds:
        scenes = [worlds.sample(worlds.HELD_OUT + i, frames=1) for i in range(seeds)]
        prompts = world.prompts(scenes)
        judged = world.score(
            list(map(world.judge, world.paint(model, scenes, prompts, 16, 0, {"steps": steps}), scenes, prompts))
        )
        scores = {name: judged[name] for name in SCORES}
    clips = model.generate(list(PROMPTS), size=SIZE, frames=1, seed=SEED, steps=steps)
    return {"scores": scores, "clips": clips}


def table(result: dict) -> str:
    """The study for people."""
    lines = [f"{'':12}{'steps':>7}{'TFLOP':>9}{'held out':>10}" + "".join(f"{name:>9}" for name in SCORES)]
    for row in result["members"]:
        cells = "".join(f"{100 * row[name]:>8.0f}%" if row.get(name) is not None else f"{'-':>9}" for name in SCORES)
        lines.append(f"{row['name']:12}{row['steps']:>7}{row['compute'] / 1e12:>9.3g}{row['loss']:>10.4f}{cells}")
    lines.append(f"L = {result['a']:.3g} C^-{result['b']:.3f}, fitted to {', '.join(result['fitted'])}")
    if "predicted" in result:
        said = result["predicted"]
        off = said["loss"] / said["measured"] - 1
        lines.append(f"{said['name']}: predicted {said['loss']:.4f}, measured {said['measured']:.4f} ({off:+.1%})")
    else:
        said = result["expected"]
        lines.append(f"at {said['compute'] / 1e12:.3g} TFLOP: predicted {said['loss']:.4f}")
    return "\n".join(lines)


def draw(rows: list[dict], told: dict, path: Path) -> None:
    """Held-out loss over compute with the law, and the oracle's scores over compute."""
    from matplotlib.figure import Figure

    scored = [name for name in SCORES if rows[0].get(name) is not None]
    figure = Figure(figsize=(9.6 if scored else 5.0, 3.6), layout="constrained")
    axes = figure.subplots(1, 2 if scored else 1, squeeze=False)[0]
    compute = np.array([row["compute"] for row in rows])
    line = np.geomspace(compute[0], told.get("expected", {}).get("compute", compute[-1]), 50)
    axes[0].loglog(line, law(line, told["a"], told["b"]), "--", color="#888", label=f"fitted: C^-{told['b']:.3f}")
    inside = [row for row in rows if row["name"] in told["fitted"]]
    axes[0].loglog([row["compute"] for row in inside], [row["loss"] for row in inside], "o", label="trained")
    if "predicted" in told:
        axes[0].loglog(compute[-1:], [rows[-1]["loss"]], "o", color="#d0603a", label="trained, not fitted")
    for row in rows:
        axes[0].annotate(
            row["name"], (row["compute"], row["loss"]), xytext=(5, 5), textcoords="offset points", fontsize=7
        )
    axes[0].set_ylabel("held-out loss")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter("{x:g}")
    axes[0].tick_params(axis="y", which="both", labelsize=7)
    axes[0].legend(fontsize=8)
    if scored:
        for name in scored:
            axes[1].semilogx(compute, [row[name] for row in rows], "o-", label=name)
        axes[1].set_ylim(0, 1)
        axes[1].set_ylabel("right to the oracle, share")
        axes[1].legend(fontsize=8)
    for axis in axes:
        axis.set_xlabel("training compute, FLOP")
        axis.grid(alpha=0.25, which="both")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def draw_samples(rows: list[dict], clips: list[list[media.Video]], path: Path) -> None:
    """What each member painted of PROMPTS: a column for each, its compute above."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 * len(rows), 1.75 * len(PROMPTS)), layout="constrained")
    axes = figure.subplots(len(PROMPTS), len(rows), squeeze=False)
    for column, (row, painted) in enumerate(zip(rows, clips)):
        axes[0, column].set_title(f"{row['compute'] / rows[0]['compute']:.2g} x compute", fontsize=9)
        for axis, clip in zip(axes[:, column], painted):
            axis.imshow(clip.frames[0], interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    for axis, prompt in zip(axes[:, 0], PROMPTS):
        axis.set_ylabel("\n".join(textwrap.wrap(prompt, 18)), fontsize=8)
    figure.savefig(path, dpi=110)
