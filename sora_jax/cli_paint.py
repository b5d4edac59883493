"""The verbs of the `sora-jax` command that paint: from a prompt, pictures, footage.

Each reads what it is given, calls the Model's method of its name, and writes the result, all or nothing: the clip or
image, a contact sheet if asked (frames that were given are marked), and one JSON line on stdout; progress on stderr.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from sora_jax import flags
from sora_jax.errors import InputError

STILL = (".png", ".jpg", ".jpeg")  # a prompt is painted as an image to these unless told a length


# ------------------------------------------------------------------------------------------------ verbs


def generate(args) -> None:
    """Paint a video, or an image, from a prompt; print one JSON line about it."""
    frames = 1 if args.frames is None and args.seconds is None and suffix(args.out) in STILL else args.frames
    length = {"frames": frames, "seconds": args.seconds}
    asked, args.about = args.prompt, {}
    if args.expander:
        from sora_jax import expansion

        made = expansion.expand(asked, args.expander, seed=args.seed, examples=args.examples)
        print(made.warning or f"expanded: {made.text}", file=sys.stderr)
        args.prompt, args.about = made.text, {"prompt": asked, "expanded": made.text, "by": made.source}

    def run(model, how):
        from sora_jax import drafts, prompting

        fps = model.sample["fps"]
        if args.preview:
            preview(args, lambda size: model.generate(args.prompt, size=size, **length, **how))
        count = prompting.length_of(frames, args.seconds, fps, 17)
        reach = drafts.reach(model)[0]
        if count > reach and args.best > 1:
            raise InputError(f"--best chooses among clips of at most {reach} frames, not of {count}: leave it out")
        if count > reach:  # in windows, each written when it is there
            return fps, drafts.stream(model, args.prompt, size=args.size, frames=count, **how)
        choose = chooser(args, asked) if args.best > 1 else next
        video = choose(iter(model.generate([args.prompt] * args.best, size=args.size, frames=count, **how)))
        return video.fps, iter([video.frames])

    produce(args, run, still=frames == 1)


def chooser(args, asked: str) -> Callable:
    """Chooses of several clips the one of which a captioner, read before they are painted, would likeliest say what was
    asked for."""
    from sora_jax import captioning
    from sora_jax.model import load

    captioner = captioning.checked(load(args.captioner))

    def choose(videos: Iterator):
        videos = list(videos)
        sure = captioning.likelihood(captioner, videos, asked)
        args.about["best"] = {"kept": int(sure.argmax()), "likelihood": [round(float(x), 3) for x in sure]}
        return videos[int(sure.argmax())]

    return choose


def image(args) -> None:
    """Paint one image from a prompt."""
    args.frames, args.seconds = 1, None
    generate(args)


def animate(args) -> None:
    """Bring a picture to life: it is the first frame, or stands where --at or --key say."""
    if args.key and args.image and not args.prompt and not Path(args.image).exists():
        args.image, args.prompt = None, args.image  # one word beside keys is the prompt, if it is no file
    from sora_jax import prompting

    pictures = {second: read(path, still=True) for second, path in args.key}
    given = None if args.image is None else read(args.image, still=True)
    if args.size:  # here, so that the contact sheet knows what was given
        pictures = {second: prompting.letterboxed(picture, args.size) for second, picture in pictures.items()}
        given = given and prompting.letterboxed(given, args.size)
    length = {"frames": args.frames, "seconds": args.seconds}
    sources = [video for video in (given, *pictures.values()) if video is not None]
    simple(args, lambda m, how: m.animate(given, args.prompt, at=args.at, keys=pictures, **length, **how), *sources)


def extend(args) -> None:
    """Go on with a video after its end, before its beginning, or both."""
    video = read(args.video)
    simple(args, lambda m, how: m.extend(video, args.prompt, before=args.before, after=args.after, **how), video)


def loop(args) -> None:
    """Add the join that makes a video an endless loop without a seam."""
    video = read(args.video)
    simple(args, lambda m, how: m.loop(video, args.prompt, seconds=args.seconds, **how), video)


def connect(args) -> None:
    """Let one video flow into another."""
    from sora_jax import prompting

    a, b = read(args.a), read(args.b)
    small, large = sorted((a, b), key=lambda v: v.width * v.height)
    if (a.width, a.height) != (b.width, b.height):
        print(
            f"the clip of {small.width}x{small.height} is letterboxed into {large.width}x{large.height}",
            file=sys.stderr,
        )
    a, b = (prompting.letterboxed(clip, (large.width, large.height)) for clip in (a, b))
    simple(args, lambda m, how: m.connect(a, b, args.prompt, seconds=args.seconds, hard=args.hard, **how), a, b)


def fill(args) -> None:
    """Paint missing frames, or what is white in a mask."""
    video, mask = read(args.video), args.mask and read(args.mask)
    simple(args, lambda m, how: m.fill(video, args.prompt, missing=args.missing, mask=mask, **how), video, still=True)


def outpaint(args) -> None:
    """Paint a wider or taller view around a video."""
    video = read(args.video)
    simple(args, lambda m, how: m.outpaint(video, args.prompt, size=args.size, **how), video, still=True)


def edit(args) -> None:
    """Repaint a video, or what is white in a mask, to a prompt."""
    video, mask = read(args.video), args.mask and read(args.mask)
    simple(args, lambda m, how: m.edit(video, args.prompt, strength=args.strength, mask=mask, **how), video, still=True)


def interpolate(args) -> None:
    """Paint frames between the frames of a video."""
    video = read(args.video)
    simple(args, lambda m, how: m.interpolate(video, args.fps, args.prompt, **how), video)


def storyboard(args) -> None:
    """Paint several shots, each with its prompt and length, on one timeline.

    The board is JSON: {"size": "96x64", "shots": [{"prompt": "...", "seconds": 2, "cut": true}, ...]}
    """
    try:
        board = json.loads(Path(args.board).read_text())
        shots = [(float(s["seconds"]), str(s["prompt"]), bool(s.get("cut", False))) for s in board["shots"]]
        wh = flags.size(board.get("size", "64x64"))
    except (ValueError, KeyError, TypeError, AttributeError, argparse.ArgumentTypeError) as error:
        raise InputError(
            f"{args.board} is not a storyboard ({error}); {storyboard.__doc__.splitlines()[-2].strip()}"
        ) from None
    args.prompt = " | ".join(prompt for _, prompt, _ in shots)
    simple(args, lambda m, how: m.storyboard(shots, size=wh, **how))


# ------------------------------------------------------------------------------------------------ what all of them do


def simple(args, method: Callable, *sources, still: bool = False) -> None:
    """A verb whose method gives a Video; `still`: of a picture a picture."""

    def run(model, how):
        video = method(model, how)
        return video.fps, iter([video.frames])

    produce(args, run, still=still and len(sources[0].frames) == 1, sources=sources)


def produce(args, run: Callable, still: bool = False, sources=()) -> None:
    """Runs `run(model, keywords) -> (fps, pieces of frames)` with a progress bar and writes what it gives."""
    from tqdm import tqdm

    from sora_jax import media

    began = time.perf_counter()
    if not still or not media.is_still(Path(args.out)):
        media.Writer(args.out, 16, 16, 8)  # refuses a suffix it cannot write before the painting, not after
    for path in filter(None, (args.out, args.sheet)):
        if not os.access(Path(path).absolute().parent, os.W_OK):
            raise InputError(f"cannot write {path}: there is no folder {Path(path).absolute().parent} to write in")

    if args.sheet and not media.is_still(Path(args.sheet)):
        raise InputError(f"--sheet {args.sheet}: a contact sheet is a picture, such as sheet.png")
    from sora_jax.model import load

    model = load(args.model, lora=args.lora, quant=args.quant)
    model.tile = args.tile
    # XLA does not come back to Python while it runs: Ctrl-C ends the process as it stands, for nothing is written yet.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    bar = tqdm(desc="painting", unit="step", file=sys.stderr)

    def progress(done: int, of: int) -> None:
        bar.total = of
        bar.update(done - bar.n)

    how = {"seed": args.seed, "steps": args.steps, "solver": args.solver, "guidance": args.guidance}
    how["negative"] = args.negative
    with bar:
        fps, pieces = run(model, how | {"cache": args.cache, "progress": progress})
        facts, shown = write(args.out, fps, pieces, keep=bool(args.sheet), about=args.about)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if args.sheet:
        given = {frame.tobytes() for source in sources for frame in source.frames}
        known = [[frame.tobytes() in given for frame in shown.frames]]
        media.contact_sheet([shown], [args.prompt], args.sheet, known=known)
    print(json.dumps(facts | args.about | {"seed": args.seed, "seconds": round(time.perf_counter() - began, 2)}))


def write(path: str, fps: float, pieces: Iterator, keep: bool, about: dict) -> tuple[dict, object]:
    """Writes pieces of frames as they come, and what there is to say about them into the file; returns facts about them
    and, if they are to be kept, the Video."""
    import numpy as np

    from sora_jax import media

    first, kept, count = next(pieces), [], 0
    height, width = first.shape[1:3]
    comment = json.dumps(about, ensure_ascii=False) if about else ""
    if len(first) == 1 and media.is_still(Path(path)):
        media.write(media.Video(first, fps), path, comment)
        kept, count = [first], 1
    else:
        with media.Writer(path, width, height, fps, comment) as writer:
            for piece in chain([first], pieces):
                writer.write(piece)
                kept += [piece] if keep else []
                count += len(piece)
    facts = {"path": path, "width": width, "height": height, "frames": count, "fps": fps}
    return facts, media.Video(np.concatenate(kept), fps) if keep else None


def preview(args, paint: Callable) -> None:
    """The same at half the size first, for a look before the long wait."""
    side = tuple(max(16, n // 2) for n in args.size)
    small = Path(args.out).with_stem(Path(args.out).stem + ".preview")
    paint(side).save(small)
    print(f"a preview of {side[0]}x{side[1]}: {small}", file=sys.stderr)


def read(path: str, still: bool = False):
    """The clip at a path; of a picture its one frame."""
    from sora_jax import media

    return media.read(path, max_frames=1 if still else None)


# ------------------------------------------------------------------------------------------------ flags


def add(verb: Callable) -> None:
    """Adds the verbs with their flags; `verb(name, function, about)` gives the parser of a new one."""
    p = verb("generate", generate, "paint a video or an image from a prompt")
    text(p)
    candidates(p)
    length(p, "default 17; 1 is an image")
    common(p)

    p = verb("image", image, "paint an image from a prompt")
    text(p)
    candidates(p)
    common(p)

    p = verb("animate", animate, "bring a picture to life")
    p.add_argument("image", nargs="?", metavar="IMAGE")
    p.add_argument("prompt", nargs="?", default="")
    p.add_argument("--at", type=float, default=0.0, metavar="SHARE", help="where it stands: 0 first, 1 last frame")
    p.add_argument("--key", type=flags.key, action="append", default=[], metavar="SECOND=IMAGE", help="more pictures")
    p.add_argument("--size", type=flags.size, metavar="WxH", help="of the clip (default: the first picture's)")
    length(p, "default: as many as the model learned")
    common(p)

    p = verb("extend", extend, "go on with a video, forward or backward")
    source(p)
    p.add_argument("--before", type=float, default=0.0, metavar="S", help="seconds before its beginning")
    p.add_argument("--after", type=float, default=0.0, metavar="S", help="seconds after its end")
    common(p)

    p = verb("loop", loop, "make a video an endless loop")
    source(p)
    p.add_argument("--seconds", type=float, metavar="S", help="of the join")
    common(p)

    p = verb("connect", connect, "let one video flow into another")
    p.add_argument("a", metavar="A")
    p.add_argument("b", metavar="B")
    p.add_argument("prompt", nargs="?", default="")
    p.add_argument("--seconds", type=float, metavar="S", help="of the join")
    p.add_argument("--hard", action="store_true", help="paint it from noise, not over a cross-fade")
    common(p)

    p = verb("fill", fill, "paint missing frames or masked regions")
    source(p)
    p.add_argument(
        "--missing", type=flags.span, action="append", default=[], metavar="FIRST-LAST", help="frames, from 0"
    )
    p.add_argument("--mask", metavar="FILE", help="a picture or a clip, white where the video is to be painted")
    common(p)

    p = verb("outpaint", outpaint, "paint a wider or taller view")
    source(p)
    p.add_argument("--size", type=flags.size, required=True, metavar="WxH")
    common(p)

    p = verb("edit", edit, "repaint a video to a prompt")
    p.add_argument("video", metavar="VIDEO")
    p.add_argument("prompt")
    p.add_argument(
        "--strength", type=flags.numbers, default=0.6, metavar="X[,X...]", help="0 to 1, or several over time"
    )
    p.add_argument("--mask", metavar="FILE", help="a picture or a clip, white where the video may change")
    common(p)

    p = verb("interpolate", interpolate, "paint frames between frames")
    source(p)
    p.add_argument("--fps", type=float, required=True, metavar="N")
    common(p)

    p = verb("storyboard", storyboard, "paint several shots on one timeline")
    p.add_argument("board", metavar="BOARD.json")
    common(p)


def common(p: argparse.ArgumentParser) -> None:
    p.set_defaults(about={})
    p.add_argument("--out", required=True, metavar="FILE", help=".mp4 .webm .mov .gif .webp, or .png .jpg for an image")
    p.add_argument("--seed", type=int, default=0, metavar="K", help="the same seed gives the same bytes (default 0)")
    p.add_argument(
        "--steps",
        type=flags.steps,
        metavar="N",
        help="solver steps, or noise levels 1,...,0 (default: the model's)",
    )
    p.add_argument("--solver", metavar="NAME", help="euler, renoise, dpm2m or unipc (default: the model's)")
    p.add_argument(
        "--guidance",
        type=flags.numbers,
        metavar="G[,G...]",
        help="how hard to follow the prompt; several: in turn",
    )
    p.add_argument("--negative", default="", metavar="PROMPT", help="what to stay away from")
    p.add_argument(
        "--cache",
        type=float,
        default=0.0,
        metavar="X",
        help="skip the network while it would say little new (try 0.15)",
    )
    p.add_argument("--model", default="tiny", metavar="DIR", help="a model folder (default: the bundled one)")
    p.add_argument(
        "--lora",
        type=flags.lora,
        action="append",
        default=[],
        metavar="FILE[=WEIGHT[:high|:low]]",
        help="add a LoRA to the model's transformer, or to that for high or low noise; give as many as you like",
    )
    p.add_argument(
        "--quant",
        default="",
        choices=("int8", "float8"),
        help="keep the matrices of transformer and text encoder in 8 bits: half the memory of bfloat16",
    )
    p.add_argument(
        "--tile",
        type=flags.whole,
        metavar="N",
        help="encode and decode in tiles of N latents: the same in less memory",
    )
    p.add_argument("--sheet", metavar="FILE.png", help="write a contact sheet as well")


def text(p: argparse.ArgumentParser) -> None:
    p.add_argument("prompt")
    p.add_argument("--size", type=flags.size, default=(64, 64), metavar="WxH", help="exact, in pixels (default 64x64)")
    p.add_argument("--preview", action="store_true", help="paint it at half the size first, beside --out")
    expander(p, required=False)


def candidates(p: argparse.ArgumentParser) -> None:
    many = "paint so many, together, and keep the one of which a captioner would likeliest say the prompt"
    p.add_argument("--best", type=flags.whole, default=1, metavar="N", help=many)
    who = "who chooses (default: the bundled captioner, which knows the world's clips)"
    p.add_argument("--captioner", default="captioner", metavar="DIR", help=who)


def expander(p: argparse.ArgumentParser, required: bool) -> None:
    name = "--expander" if required else "--expand"
    about = "who makes the prompt descriptive: openai:URL#model (its key in OPENAI_API_KEY), tiny, a folder, or none"
    p.add_argument(name, dest="expander", required=required, metavar="WHO", help=about)
    p.add_argument("--examples", metavar="DATASET", help="captions an endpoint is shown: a dataset of clips, or world")


def source(p: argparse.ArgumentParser) -> None:
    p.add_argument("video", metavar="VIDEO")
    p.add_argument("prompt", nargs="?", default="")


def length(p: argparse.ArgumentParser, default: str) -> None:
    group = p.add_mutually_exclusive_group()
    group.add_argument("--seconds", type=float, metavar="S")
    group.add_argument("--frames", type=int, metavar="N", help=default)


def suffix(path: str) -> str:
    return Path(path).suffix.lower()
