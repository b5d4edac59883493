"""The `sora-jax` command: one thin function per verb, no logic. The verbs that paint are in `cli_paint.py`,
those of datasets in `cli_data.py`, those that measure in `cli_evaluate.py`.

Imports of anything heavy are inside the verbs, so that --help answers at once. Results go to stdout, everything else to
stderr. Exit codes: 0; 2 for a user's mistake or a disk that refuses, in one sentence; 130 for Ctrl-C.
"""

import argparse
import json
import os
import sys
import traceback
from functools import partial
from pathlib import Path

from sora_jax import cli_data, cli_evaluate, cli_paint, flags
from sora_jax.errors import InputError, local


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns the process's exit code."""
    # What XLA compiled once it need not compile again: kept in the user's cache folder, unless JAX is told otherwise.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "sora_jax" / "jax"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else it announces them on stderr; here it only moves data
    args = parsed(sys.argv[1:] if argv is None else argv)
    try:
        if args.run is not report_run:
            local(getattr(args, "out", None) or "")  # a bucket is told before the work begins
        args.run(args)
    except KeyboardInterrupt:
        return fail("stopped", 130)
    except InputError as error:
        return fail(str(error))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sora_jax"):
            raise
        return fail(f"this needs {error.name}, which is not installed: pip install 'sora_jax[train]'")
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
    return 0


def fail(sentence: str, code: int = 2) -> int:
    print(f"sora-jax: {' '.join(sentence.split())}", file=sys.stderr)
    return code


# ------------------------------------------------------------------------------------------------ verbs


def train(args) -> None:
    """Train what a config describes in a working folder; the same command goes on from its last checkpoint."""
    from sora_jax.train import configs

    config = configs.read(args.config, args.settings)  # a mistake in it is told before the seconds JAX takes to import

    from sora_jax.train import loop

    if not args.distributed:
        loop.train(config, args.workdir)
        return
    import jax

    loop.join()
    try:
        loop.train(config, args.workdir)
    except jax.errors.JaxRuntimeError as error:
        if any(final in str(error) for final in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")):
            raise
        # Another host is gone. Launchers start all again for this code, as for JAX's own when it notices first.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(134)


def plan(args) -> None:
    """Compile a step for TPU chips that are not here: does it fit, how fast could it be, what would it cost."""
    from sora_jax.pod import chips
    from sora_jax.train import configs

    chips.topology(args.topology)  # mistakes are told before the seconds JAX takes to import
    settings = [f"mesh.{size}" for size in args.mesh.split(",") if size]
    settings += [f"data.{name}={n}" for name, n in (("row", args.row), ("rows", args.rows)) if n]
    config = configs.read(args.config, [*settings, *args.settings])
    # libtpu compiles without a TPU: it must not look for one, nor mind another libtpu
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"}

    from sora_jax.pod import plan, table

    options = dict(slices=args.slices, task=args.task, tokens=args.tokens, size=args.size)
    if args.search:
        found = plan.search(config, args.topology, **options)
        print(json.dumps(found) if args.json else table.found(found))
        return
    facts = plan.plan(config, args.topology, **options)
    if args.picture:
        table.picture(facts, args.picture)
    print(json.dumps(facts) if args.json else table.text(facts))


def export(args) -> None:
    """Write a training's averaged weights, of its last checkpoint, as a model folder, its LoRA alone, or a model
    folder's parts for diffusers, or a model folder again in int8."""
    if args.dtype and args.format != "sora":
        raise InputError(f"--dtype is of our own format: --format {args.format} writes what is there as it is stored")
    if args.format == "lora":
        from sora_jax.weights import lora

        print(json.dumps({"path": args.out, "tensors": len(lora.export(args.source, args.out))}))
        return
    if args.format == "diffusers":
        from sora_jax.weights import convert

        print(json.dumps(convert.export(args.source, args.out)))
        return
    if args.dtype == "int8":
        from sora_jax.weights import quant

        print(json.dumps(quant.export(args.source, args.out)))
        return
    from sora_jax.train.export import export

    export(args.source, args.out, args.dtype or "float32")
    print(json.dumps({"path": args.out}))


def import_(args) -> None:
    """Make a model folder of other people's weights, in the layout of their authors or of diffusers."""
    from sora_jax.weights import convert

    print(json.dumps(convert.import_(args.source, args.out)))


def expand(args) -> None:
    """Make a short prompt a descriptive caption that does not contradict it; prints it."""
    from sora_jax import expansion

    made = expansion.expand(args.prompt, args.expander, seed=args.seed, examples=args.examples)
    if made.warning:
        print(made.warning, file=sys.stderr)
    print(made.text)


def report_run(args) -> None:
    """Write the story of a run, so far, as one HTML page: curves, samples, checkpoints, config."""
    from sora_jax.evaluate import report

    print(json.dumps({"path": str(report.write(args.workdir, args.out))}))


# ------------------------------------------------------------------------------------------------ flags


def parsed(argv: list[str]) -> argparse.Namespace:
    """The arguments of one verb; `train`, `plan` and `data curate` take --config.KEY=VALUE besides."""
    root = parser()
    args, rest = root.parse_known_args(argv)
    settings, rest = [], iter(rest)
    for word in rest:
        if args.run not in (train, plan, cli_data.data_curate) or not word.startswith("--config."):
            root.error(f"unrecognized argument: {word}")
        word = word.removeprefix("--config.")
        settings.append(word if "=" in word else f"{word}={next(rest, '')}")
    args.settings = settings
    return args


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="sora-jax", description="Text to video in JAX: data, training, sampling.")
    verbs = root.add_subparsers(metavar="VERB", required=True)

    def verb(parent, name: str, run, about: str) -> argparse.ArgumentParser:
        made = parent.add_parser(name, help=about, description=run.__doc__, allow_abbrev=False)
        made.set_defaults(run=run)
        return made

    cli_paint.add(partial(verb, verbs))

    p = verb(verbs, "train", train, "train what a config describes; run it again to go on")
    p.add_argument("--config", required=True, metavar="FILE.py[:VARIANT]")
    p.add_argument("--workdir", required=True, metavar="DIR")
    p.add_argument("--distributed", action="store_true", help="as one of several processes (TPU pod, GKE, SLURM)")
    p.epilog = "Any value of the config can be set here: --config.opt.lr=3e-4"

    p = verb(verbs, "plan", plan, "compile a step for TPU chips that are not here: memory, work, time and cost")
    p.add_argument("--config", required=True, metavar="FILE.py[:VARIANT]")
    p.add_argument("--topology", required=True, metavar="CHIP:AxBxC", help="such as v5p:8x8x8, v6e:16x16, tpu7x:4x4x8")
    p.add_argument("--mesh", default="", metavar="AXIS=N,...", help="such as fsdp=64,context=8 (default: the config's)")
    p.add_argument("--slices", type=int, default=1, metavar="N", help="slices, joined by the data centre's network")
    p.add_argument("--row", type=flags.whole, metavar="N", help="patches in a row (default: the config's)")
    p.add_argument(
        "--rows", type=flags.whole, metavar="N", help="rows of a step, over all devices (default: the config's)"
    )
    p.add_argument("--task", choices=("train", "sample", "vae-decode"), default="train")
    p.add_argument(
        "--size",
        type=flags.size,
        default=(1920, 1080),
        metavar="WxH",
        help="frames of vae-decode (default 1920x1080)",
    )
    p.add_argument("--tokens", type=float, metavar="N", help="train on so many: days, chip-hours and list price")
    rows = "the longest row that fits, --row doubled or halved, over meshes and what remat keeps"
    p.add_argument("--search", action="store_true", help=rows)
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_argument("--picture", metavar="FILE.png", help="and draw memory and time as bars")
    p.epilog = "Any value of the config can be set here: --config.dit.keep=nothing"

    p = verb(verbs, "export", export, "a training's weights to a model folder, or a model folder for diffusers")
    p.add_argument("source", metavar="WORKDIR|MODEL")
    p.add_argument("--out", required=True, metavar="DIR|FILE")
    sizes = "of a training's parameters (default float32); int8: of a model folder, to paint in half bfloat16's memory"
    p.add_argument("--dtype", choices=("float32", "bfloat16", "int8"), help=sizes)
    kinds = "diffusers: of a model folder; lora: a file, of the training of one"
    p.add_argument("--format", choices=("sora", "diffusers", "lora"), default="sora", help=kinds)

    p = verb(verbs, "import", import_, "other people's weights to a model folder")
    p.add_argument("family", choices=("wan",))
    p.add_argument("source", nargs="+", metavar="DIR|FILE", help=".safetensors (or an .index.json), .pth, spiece.model")
    p.add_argument("--out", required=True, metavar="MODEL", help="a new folder, or a model to add parts to")

    p = verb(verbs, "report", report_run, "a run's story as one HTML page")
    p.add_argument("workdir", metavar="WORKDIR")
    p.add_argument("--out", metavar="FILE.html", help="default: WORKDIR/report.html")

    p = verb(verbs, "expand", expand, "a short prompt to a descriptive one")
    p.add_argument("prompt")
    cli_paint.expander(p, required=True)
    p.add_argument("--seed", type=int, default=0, metavar="K", help="the same seed gives the same text (default 0)")

    cli_data.add(verbs, verb)

    cli_evaluate.add(verbs, verb)
    return root


if __name__ == "__main__":
    sys.exit(main())
