"""The verbs `sora-jax evaluate ...`: what a model can do, in numbers, and two of them side by side.

Each prints a table and one JSON line; with --out it leaves a folder with every case and a page to look at.
"""

import argparse
import json
from collections.abc import Callable, Sequence

from sora_jax import flags
from sora_jax.errors import InputError

# ------------------------------------------------------------------------------------------------ verbs


def world(args) -> None:
    """Paint held-out prompts of the embedded world and ask its oracle, which sees pixels alone, what they show."""
    from sora_jax.evaluate import world

    how = dict(steps=args.steps, solver=args.solver, guidance=args.guidance, best=args.best)
    which = dict(seeds=args.seeds, frames=args.frames, scene=args.scene)
    world.evaluate(args.model, quiet=args.json, out=args.out, **which, **how)


def vae(args) -> None:
    """Encode and decode clips at their native size, and say how far they are from what they were."""
    from sora_jax.evaluate import vae

    vae.evaluate(args.source, args.model, clips=args.clips, frames=args.frames, quiet=args.json, out=args.out)


def prompting(args) -> None:
    """Animate, extend, loop, connect, fill and edit held-out clips of the embedded world; compare with the truth."""
    from sora_jax.evaluate import prompting

    tasks = chosen("task", args.tasks, tuple(prompting.TASKS))
    prompting.evaluate(args.model, cases=args.cases, tasks=tasks, steps=args.steps, minute=args.minute, out=args.out)


def simulation(args) -> None:
    """Let it go on from the beginning of held-out scenes: what hides, falls, collides, stays, paints, bites, plays."""
    from sora_jax.evaluate import simulation

    probes = chosen("probe", args.probes, tuple(simulation.PROBES))
    simulation.evaluate(
        args.model, cases=args.cases, probes=probes, seconds=args.seconds, steps=args.steps, out=args.out
    )


def captions(args) -> None:
    """Caption held-out scenes of the embedded world, and read the captions back against what is in the scenes."""
    from sora_jax.evaluate import captions

    captions.evaluate(args.captioner, clips=args.clips, quiet=args.json)


def vbench(args) -> None:
    """Paint VBench's prompts, or a file of yours, in the layout its own code reads; run it again to go on."""
    from sora_jax.evaluate import vbench

    how = dict(dimensions=args.dimensions, samples=args.samples, size=args.size, frames=args.frames)
    print(json.dumps(vbench.export(args.prompts, args.out, args.model, steps=args.steps, seed=args.seed, **how)))


def scaling(args) -> None:
    """Set the trainings of a sweep of sizes against their compute: a power law, the oracle's scores, pictures."""
    from sora_jax.evaluate import scaling

    scaling.evaluate(args.sweep, seeds=args.seeds, steps=args.steps, picture=args.picture, expected=args.expected)


def compare(args) -> None:
    """Set two evaluations side by side: every score's difference, with the interval that 95 % of draws lie in."""
    from sora_jax.evaluate import results

    found = results.compare(args.a, args.b)
    print(json.dumps(found) if args.json else results.table(found))


def chosen(what: str, given: Sequence[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """Those given, or all that are known. Raises InputError for one that is not."""
    for name in given or ():
        if name not in known:
            raise InputError(f"there is no {what} {name!r}: choose among {', '.join(known)}")
    return tuple(given or known)


# ------------------------------------------------------------------------------------------------ flags


def add(verbs, verb: Callable) -> None:
    """Adds them; verb(parent, name, run, about) makes a parser."""
    judge = verbs.add_parser("evaluate", help="measure a model", description="Measure a model.")
    kinds = judge.add_subparsers(metavar="WHAT", required=True)

    def model(p: argparse.ArgumentParser) -> None:
        p.add_argument("--model", default="tiny", metavar="DIR")

    def steps(p: argparse.ArgumentParser) -> None:
        p.add_argument("--steps", type=int, metavar="N", help="solver steps (default: the model's)")

    def out(p: argparse.ArgumentParser) -> None:
        p.add_argument(
            "--out", type=flags.folder, metavar="DIR", help="leave every case and a page with the clips there"
        )

    def line(p: argparse.ArgumentParser) -> None:
        p.add_argument("--json", action="store_true", help="print the JSON line alone")

    def parser(name: str, run: Callable, about: str, *common: Callable) -> argparse.ArgumentParser:
        p = verb(kinds, name, run, about)
        for add_flag in common:
            add_flag(p)
        return p

    p = parser("world", world, "what the world's oracle sees in prompted videos", model, steps, out, line)
    p.add_argument(
        "--seeds", type=flags.whole, default=200, metavar="N", help="held-out scenes to ask for (default 200)"
    )
    p.add_argument("--frames", type=int, metavar="N", help="of every scene, 1 for images (default: each its own)")
    what = "what the scenes have in common, as count=1,scale=large,background=plain"
    p.add_argument("--scene", type=flags.words, metavar="NAME=WORD,...", help=what)
    p.add_argument("--solver", metavar="NAME", help="euler, renoise, dpm2m or unipc (default: the model's)")
    p.add_argument("--guidance", type=float, metavar="G", help="how hard to follow the prompt (default: the model's)")

    many = "of so many clips the one that the bundled captioner finds likeliest (default 1)"
    p.add_argument("--best", type=flags.whole, default=1, metavar="N", help=many)

    p = parser("vae", vae, "what its VAE loses of clips", model, out, line)
    p.add_argument("source", nargs="?", default="world", help="a folder of videos and images (default: world)")
    p.add_argument("--clips", type=flags.whole, default=64, metavar="N", help="pieces to look at (default 64)")
    p.add_argument("--frames", type=int, default=33, metavar="N", help="of a piece, at most (default 33)")

    p = parser("captions", captions, "how true a captioner's sentences about the world are", line)
    p.add_argument("--captioner", default="captioner", metavar="DIR", help="a captioner's folder")
    p.add_argument("--clips", type=flags.whole, default=500, metavar="N", help="held-out scenes (default 500)")

    p = parser("prompting", prompting, "how it paints around what it is given", model, steps, out)
    p.add_argument("--cases", type=flags.whole, default=50, metavar="N", help="held-out scenes a task (default 50)")
    p.add_argument("--tasks", nargs="+", metavar="TASK", help="only these (default: all)")
    p.add_argument("--minute", action="store_true", help="and the drift of one-minute clips")

    p = parser("simulation", simulation, "whether what it paints goes on as the world does", model, steps, out)
    p.add_argument("--cases", type=flags.whole, default=25, metavar="N", help="held-out scenes a probe (default 25)")
    p.add_argument("--probes", nargs="+", metavar="PROBE", help="only these (default: all)")
    p.add_argument("--seconds", type=float, default=4.0, metavar="S", help="of the clips of `coherence` (default 4)")

    p = parser("vbench", vbench, "paint prompts for VBench to judge", model, steps)
    p.add_argument("prompts", metavar="FILE", help="VBench_full_info.json, or a text of one prompt a line")
    p.add_argument("--out", required=True, metavar="DIR")
    p.add_argument("--dimensions", nargs="+", default=(), metavar="NAME", help="VBench's prompts for these alone")
    p.add_argument("--samples", type=int, default=5, metavar="N", help="videos of a prompt (default 5, as it reads)")
    p.add_argument("--size", type=flags.size, default=(64, 64), metavar="WxH", help="default 64x64")
    p.add_argument("--frames", type=int, default=17, metavar="N", help="default 17")
    p.add_argument("--seed", type=int, default=0, metavar="K", help="of the first sample (default 0)")

    p = parser("scaling", scaling, "quality against compute, over a sweep of sizes", steps)
    p.add_argument("sweep", metavar="DIR", help="the --out of launch/sweep.py")
    p.add_argument("--seeds", type=int, default=60, metavar="N", help="held-out images to judge (default 60; 0: none)")
    p.add_argument("--picture", metavar="FILE.png", help="draw the law there, and samples beside it")
    p.add_argument("--expected", type=float, metavar="FLOP", help="predict a training of that compute, yet to be run")

    p = parser("compare", compare, "two evaluations of one kind, side by side", line)
    p.add_argument("a", metavar="A", help="a folder that --out made")
    p.add_argument("b", metavar="B", help="another")
