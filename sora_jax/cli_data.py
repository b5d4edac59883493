"""The verbs of `sora-jax` that make and change datasets: data build, curate, latents, tokenizer; caption."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from sora_jax import flags


def data_build(args) -> None:
    """Make a dataset of clips and captions out of a folder, what was curated of one, a TFDS dataset or the world."""
    from sora_jax.data import dataset

    options = dict(captions=args.captions, fps=args.fps, max_frames=args.max_frames, clips=args.clips)
    options |= dict(seed=args.seed, scene=args.scene, runner=args.runner, beam=args.beam)
    made(dataset.build(args.src, args.out, **options))


def data_curate(args) -> None:
    """Find the shots in a folder of footage and list those worth training on; a page in --out shows which, and why."""
    from sora_jax.train import configs

    config = configs.read(args.config, args.settings)

    from sora_jax.data import curate

    made(curate.curate(args.src, args.out, config, captions=args.captions, runner=args.runner, beam=args.beam))


def data_latents(args) -> None:
    """Encode a dataset of clips, or the embedded world, with a model's VAE, each clip at its own size."""
    from sora_jax.data import dataset

    options = dict(max_pixels=args.max_pixels, max_frames=args.max_frames, fps=args.fps, clips=args.clips)
    options |= dict(seed=args.seed, scene=args.scene, square=args.square, runner=args.runner, beam=args.beam)
    made(dataset.latents(args.dataset, args.model, args.out, **options))


def data_tokenizer(args) -> None:
    """Train a sentencepiece tokenizer on the captions of a dataset, of a folder of clips, or of the embedded world."""
    from sora_jax.data import dataset
    from sora_jax.models.text import train_tokenizer

    tokenizer = train_tokenizer(dataset.captions_of(args.src, clips=args.clips), args.out, args.vocab)
    print(json.dumps({"path": args.out, "vocab": tokenizer.vocab}))


def caption(args) -> None:
    """Tell the clips of a dataset by a captioner or an OpenAI-compatible endpoint: the same clips, new captions."""
    from sora_jax.data import recaption

    host, hosts = args.host
    options = dict(host=host, hosts=hosts, parallel=args.parallel, rate=args.rate, price=args.price)
    options |= dict(timeout=args.timeout, retries=args.retries, seed=args.seed)
    made(recaption.recaption(args.dataset, args.captioner, args.out, **options))


def made(facts: dict) -> None:
    """What a dataset became, on stdout; what was skipped is in the dataset's own report.json."""
    if facts["skipped"]:
        where = Path(facts["out"]) / "report.json"
        print(f"skipped {len(facts['skipped'])} files, which {where} lists with the reasons", file=sys.stderr)
    print(json.dumps({**facts, "skipped": len(facts["skipped"])}))


# ------------------------------------------------------------------------------------------------ flags


def add(verbs, verb: Callable) -> None:
    """The verbs' parsers; `verb(parent, name, run, about)` makes one."""

    def beam(p: argparse.ArgumentParser) -> None:
        p.add_argument("--runner", default="DirectRunner", help="Apache Beam's runner (default: this machine)")
        p.add_argument("--beam", nargs="+", default=[], metavar="KEY=VALUE", help="options of that runner")

    def scenes(p: argparse.ArgumentParser) -> None:
        p.add_argument("--clips", type=int, metavar="N", help="only so many; the world has no end and needs it")
        p.add_argument("--seed", type=int, default=0, metavar="K", help="first scene of the world (default 0)")
        what = "what the world's scenes have in common, as count=1,scale=large,background=plain"
        p.add_argument("--scene", type=flags.words, metavar="NAME=WORD,...", help=what)
        p.add_argument("--max-frames", type=int, metavar="N", help="keep only the beginning of longer clips")

    data = verbs.add_parser("data", help="prepare datasets", description="Prepare datasets.")
    kinds = data.add_subparsers(metavar="WHAT", required=True)
    p = verb(kinds, "curate", data_curate, "hours of footage to a list of good clips, and a page that shows why")
    p.add_argument("src", metavar="SRC", help="a folder of clips and images")
    p.add_argument("--out", required=True, metavar="DIR", help="the list; `data build` reads it")
    p.add_argument("--config", default="configs/curate.py", metavar="FILE.py[:VARIANT]", help="all thresholds")
    p.add_argument(
        "--captions", metavar="FILE", help="a .jsonl or .csv of file and caption; they follow a file's clips"
    )
    p.epilog = "Any value of the config can be set here: --config.keep.seconds=2"
    beam(p)
    p = verb(kinds, "build", data_build, "clips and captions to a dataset")
    what = "a folder of clips and images, what `data curate` made, tfds:NAME..., or world"
    p.add_argument("src", metavar="SRC", help=what)
    p.add_argument("--out", required=True, metavar="DIR")
    p.add_argument("--captions", metavar="FILE", help="a .jsonl or .csv of file and caption")
    p.add_argument("--fps", type=float, help="resample clips of another rate")
    scenes(p)
    beam(p)
    p = verb(kinds, "latents", data_latents, "a dataset of clips to one of latents")
    p.add_argument("dataset", metavar="DATASET", help="what `data build` made, or world")
    p.add_argument("--model", required=True, metavar="DIR", help="a model folder, or tiny: its VAE encodes")
    p.add_argument("--out", required=True, metavar="DIR")
    p.add_argument("--max-pixels", type=int, metavar="N", help="shrink clips of more pixels a frame")
    p.add_argument("--square", action="store_true", help="keep the square in the middle, to compare with")
    p.add_argument("--fps", type=float, help="resample clips of another rate")
    scenes(p)
    beam(p)
    p = verb(kinds, "tokenizer", data_tokenizer, "a tokenizer from captions")
    p.add_argument("src", metavar="SRC", help="a dataset, a folder of clips, a .txt .jsonl .csv of captions, or world")
    p.add_argument("--out", required=True, metavar="FILE")
    p.add_argument("--vocab", type=int, default=4096, metavar="N", help="at most so many pieces (default 4096)")
    p.add_argument("--clips", type=int, default=20_000, metavar="N", help="scenes of the world to read (default 20000)")

    p = verb(verbs, "caption", caption, "new captions for a dataset of clips")
    p.add_argument("dataset", metavar="DATASET", help="what `data build` made")
    who = "a captioner's folder, tiny, or an endpoint as openai:URL#model (its key in OPENAI_API_KEY)"
    p.add_argument("--captioner", required=True, metavar="WHO", help=who)
    p.add_argument(
        "--out", required=True, metavar="DIR", help="the same clips, newly captioned, as `data build` makes them"
    )
    p.add_argument(
        "--host", type=flags.pair, default=(0, 1), metavar="I/N", help="this host tells every N-th clip from I on"
    )
    p.add_argument("--parallel", type=int, default=4, metavar="N", help="requests under way at a time (default 4)")
    p.add_argument("--rate", type=float, default=0.0, metavar="N", help="requests a minute at most (default: no limit)")
    p.add_argument(
        "--price",
        type=flags.dollars,
        default=(0.0, 0.0),
        metavar="IN,OUT",
        help="dollars a million tokens, to show the cost",
    )
    p.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds for an answer (default 120)")
    p.add_argument("--retries", type=int, default=5, metavar="N", help="of a request that failed (default 5)")
    p.add_argument("--seed", type=int, default=0, metavar="K")
