"""The `sora-jax` command: one thin function per verb, no logic.

Imports of anything heavy are inside the verbs, so that --help answers at once. Results go to stdout, everything else to
stderr. Exit codes: 0; 2 for a user's mistake or a disk that refuses, in one sentence; 130 for Ctrl-C.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

from sora_jax.errors import InputError

STILL = (".png", ".jpg", ".jpeg")  # generate paints an image to these unless told a length


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns the process's exit code."""
    # What XLA compiled once it need not compile again: kept in the user's cache folder, unless JAX is told otherwise.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "sora_jax" / "jax"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else it announces them on stderr; here it only moves data
    args = parsed(sys.argv[1:] if argv is None else argv)
    try:
        args.run(args)
    except KeyboardInterrupt:
        return fail("stopped", 130)
    except InputError as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
    return 0


def fail(sentence: str, code: int = 2) -> int:
    print(f"sora-jax: {' '.join(sentence.split())}", file=sys.stderr)
    return code


# ------------------------------------------------------------------------------------------------ verbs


def generate(args) -> None:
    """Paint a video, or an image, from a prompt; print one JSON line about it."""
    from tqdm import tqdm

    from sora_jax import media

    began = time.perf_counter()
    frames = 1 if args.frames is None and args.seconds is None and suffix(args.out) in STILL else args.frames
    if frames != 1 or not media.is_still(Path(args.out)):
        media.Writer(args.out, *args.size, 8)  # refuses a suffix it cannot write before the painting, not after
    for path in filter(None, (args.out, args.sheet)):
        if not os.access(Path(path).absolute().parent, os.W_OK):
            raise InputError(f"cannot write {path}: there is no folder {Path(path).absolute().parent} to write in")

    from sora_jax.model import load

    model = load(args.model)
    # XLA does not come back to Python while it runs: Ctrl-C ends the process as it stands, for nothing is written yet.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    bar = tqdm(desc="painting", unit="step", file=sys.stderr)

    def progress(done: int, of: int) -> None:
        bar.total = of
        bar.update(done - bar.n)

    with bar:
        video = model.generate(
            args.prompt,
            size=args.size,
            frames=frames,
            seconds=args.seconds,
            seed=args.seed,
            steps=args.steps,
            guidance=args.guidance,
            negative=args.negative,
            progress=progress,
        )
    signal.signal(signal.SIGINT, signal.default_int_handler)
    video.save(args.out)
    if args.sheet:
        media.contact_sheet([video], [args.prompt], args.sheet)
    facts = {"path": args.out, "width": video.width, "height": video.height, "frames": len(video.frames)}
    print(json.dumps(facts | {"fps": video.fps, "seed": args.seed, "seconds": round(time.perf_counter() - began, 2)}))


def train(args) -> None:
    """Train what a config describes in a working folder; the same command goes on from its last checkpoint."""
    from sora_jax.train import configs

    config = configs.read(args.config, args.settings)  # a mistake in it is told before the seconds JAX takes to import

    from sora_jax.train import loop

    loop.train(config, args.workdir)


def export(args) -> None:
    """Write the averaged weights of a training's last checkpoint as a model folder."""
    from sora_jax.model import export

    export(args.workdir, args.out, args.dtype)
    print(json.dumps({"path": args.out}))


def data_build(args) -> None:
    """Make a dataset of clips, with their captions, out of a folder or a TFDS dataset."""
    from sora_jax.data import dataset

    options = dict(captions=args.captions, fps=args.fps, runner=args.runner, beam=args.beam)
    report(dataset.build(args.src, args.out, **options))


def data_latents(args) -> None:
    """Encode a dataset of clips, or the embedded world, with a model's VAE, each clip at its own size."""
    from sora_jax.data import dataset

    options = dict(max_pixels=args.max_pixels, max_frames=args.max_frames, fps=args.fps, clips=args.clips)
    options |= dict(seed=args.seed, runner=args.runner, beam=args.beam)
    report(dataset.latents(args.dataset, args.model, args.out, **options))


def data_tokenizer(args) -> None:
    """Train a sentencepiece tokenizer on the captions of a dataset, of a folder of clips, or of the embedded world."""
    from sora_jax.data import dataset
    from sora_jax.models.text import train_tokenizer

    tokenizer = train_tokenizer(dataset.captions_of(args.src, clips=args.clips), args.out, args.vocab)
    print(json.dumps({"path": args.out, "vocab": tokenizer.vocab}))


def evaluate_world(args) -> None:
    """Paint held-out prompts of the embedded world and ask its oracle, which sees pixels alone, what they show."""
    from sora_jax.evaluate import world

    world.evaluate(args.model, seeds=args.seeds, steps=args.steps, guidance=args.guidance, quiet=args.json)


def report(facts: dict) -> None:
    """What a dataset became, on stdout; what was skipped is in the dataset's own report.json."""
    if facts["skipped"]:
        where = Path(facts["out"]) / "report.json"
        print(f"skipped {len(facts['skipped'])} files, which {where} lists with the reasons", file=sys.stderr)
    print(json.dumps({**facts, "skipped": len(facts["skipped"])}))


# ------------------------------------------------------------------------------------------------ flags


def parsed(argv: list[str]) -> argparse.Namespace:
    """The arguments of one verb; `train` takes --config.KEY=VALUE besides."""
    root = parser()
    args, rest = root.parse_known_args(argv)
    settings, rest = [], iter(rest)
    for word in rest:
        if args.run is not train or not word.startswith("--config."):
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

    def beam(p: argparse.ArgumentParser) -> None:
        p.add_argument("--runner", default="DirectRunner", help="Apache Beam's runner (default: this machine)")
        p.add_argument("--beam", nargs="+", default=[], metavar="KEY=VALUE", help="options of that runner")

    p = verb(verbs, "generate", generate, "paint a video or an image from a prompt")
    p.add_argument("prompt")
    p.add_argument("--out", required=True, metavar="FILE", help=".mp4 .webm .mov .gif .webp, or .png .jpg for an image")
    p.add_argument("--size", type=size, default=(64, 64), metavar="WxH", help="exact, in pixels (default 64x64)")
    length = p.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, metavar="S")
    length.add_argument("--frames", type=int, metavar="N", help="default 17; 1 is an image")
    p.add_argument("--seed", type=int, default=0, metavar="K", help="the same seed gives the same bytes (default 0)")
    p.add_argument("--steps", type=int, metavar="N", help="solver steps (default: the model's)")
    p.add_argument("--guidance", type=float, metavar="G", help="how hard to follow the prompt (default: the model's)")
    p.add_argument("--negative", default="", metavar="PROMPT", help="what to stay away from")
    p.add_argument("--model", default="tiny", metavar="DIR", help="a model folder (default: the bundled one)")
    p.add_argument("--sheet", metavar="FILE.png", help="write a contact sheet as well")

    p = verb(verbs, "train", train, "train what a config describes; run it again to go on")
    p.add_argument("--config", required=True, metavar="FILE.py[:VARIANT]")
    p.add_argument("--workdir", required=True, metavar="DIR")
    p.epilog = "Any value of the config can be set here: --config.opt.lr=3e-4"

    p = verb(verbs, "export", export, "a training's weights to a model folder")
    p.add_argument("workdir", metavar="WORKDIR")
    p.add_argument("--out", required=True, metavar="DIR")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the stored parameters")

    data = verbs.add_parser("data", help="prepare datasets", description="Prepare datasets.")
    kinds = data.add_subparsers(metavar="WHAT", required=True)
    p = verb(kinds, "build", data_build, "clips and captions to a dataset")
    p.add_argument("src", metavar="SRC", help="a folder of clips and images, or tfds:NAME[:SPLIT][@DATA_DIR]")
    p.add_argument("--out", required=True, metavar="DIR")
    p.add_argument("--captions", metavar="FILE", help="a .jsonl or .csv of file and caption")
    p.add_argument("--fps", type=float, help="resample clips of another rate")
    beam(p)
    p = verb(kinds, "latents", data_latents, "a dataset of clips to one of latents")
    p.add_argument("dataset", metavar="DATASET", help="what `data build` made, or world")
    p.add_argument("--model", required=True, metavar="DIR", help="a model folder, or tiny: its VAE encodes")
    p.add_argument("--out", required=True, metavar="DIR")
    p.add_argument("--max-pixels", type=int, metavar="N", help="shrink clips of more pixels a frame")
    p.add_argument("--max-frames", type=int, metavar="N", help="keep only the beginning of longer clips")
    p.add_argument("--fps", type=float, help="resample clips of another rate")
    p.add_argument("--clips", type=int, metavar="N", help="only so many; the world has no end and needs it")
    p.add_argument("--seed", type=int, default=0, metavar="K", help="first scene of the world (default 0)")
    beam(p)
    p = verb(kinds, "tokenizer", data_tokenizer, "a tokenizer from captions")
    p.add_argument("src", metavar="SRC", help="a dataset, a folder of clips, a .txt .jsonl .csv of captions, or world")
    p.add_argument("--out", required=True, metavar="FILE")
    p.add_argument("--vocab", type=int, default=4096, metavar="N", help="at most so many pieces (default 4096)")
    p.add_argument("--clips", type=int, default=20_000, metavar="N", help="scenes of the world to read (default 20000)")

    judge = verbs.add_parser("evaluate", help="measure a model", description="Measure a model.")
    kinds = judge.add_subparsers(metavar="WHAT", required=True)
    p = verb(kinds, "world", evaluate_world, "what the world's oracle sees in prompted videos")
    p.add_argument("--model", default="tiny", metavar="DIR")
    p.add_argument("--seeds", type=int, default=200, metavar="N", help="held-out scenes to ask for (default 200)")
    p.add_argument("--steps", type=int, metavar="N", help="solver steps (default: the model's)")
    p.add_argument("--guidance", type=float, metavar="G", help="how hard to follow the prompt (default: the model's)")
    p.add_argument("--json", action="store_true", help="print the JSON line alone")
    return root


def size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 96x64")
    return int(width), int(height)


def suffix(path: str) -> str:
    return Path(path).suffix.lower()


if __name__ == "__main__":
    sys.exit(main())
