"""The whole path to what a training reads, once, on a real film: curate, clips, captions, latents, packed rows.

    python tests/benchmarks/bench_film.py [FOOTAGE] [--workdir runs/film] [--captioner tiny] [--rows 32]

FOOTAGE is a folder of yours, else Big Buck Bunny entire (ten minutes, CC-BY 3.0, Blender Foundation), its trailer, and
the clips and photographs of `tests/real_footage.py`: 65 MB out of public packages. The commands run one after the other
as a person would type them, each in a process of its own, so that the table tells the time and memory of each. What two
cores carry: clips are cut out at 8 frames a second, and encoded at no more than 192x108 pixels and 17 frames.

Captions come from the bundled captioner, which knows the synthetic world alone: of footage its words are worth nothing,
and only show that the path is whole. `--captioner openai:URL#model` asks one that knows more. A second time all clips
are told by a server on this machine that speaks OpenAI's protocol, and knows nothing but the colours it is shown.

Stopped and run again it goes on, as the commands do. Prints a table, and draws WORKDIR/told.jpg, some clips with what
was said of them, and WORKDIR/rows.png, packed rows; WORKDIR/curated/report.html shows what was kept.
"""

import argparse
import base64
import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import real_footage  # noqa: E402
from openai_server import Answer, serve  # noqa: E402

from sora_jax import media  # noqa: E402
from sora_jax.data import dataset, footage, packing, pipeline  # noqa: E402
from sora_jax.errors import InputError  # noqa: E402
from sora_jax.model import load  # noqa: E402

SMALL = ("--max-pixels", 192 * 108, "--max-frames", 17)
PORT = 8461  # always the same: a captioning that goes on asks whom it asked before
ROW = {"row": 8192, "text_row": 1024, "segments": 64, "text_tokens": 96, "open_rows": 8, "lookahead": 0, "rows": 1}
SHOWN, DRAWN = 9, 8
COLOURS = {
    "black": (15, 15, 15), "grey": (125, 125, 125), "white": (240, 240, 240), "red": (170, 40, 40),
    "orange": (190, 120, 50), "yellow": (200, 190, 80), "green": (80, 130, 50), "blue": (80, 120, 190),
    "purple": (130, 80, 150), "pink": (225, 180, 190), "brown": (90, 65, 45),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", nargs="?", type=Path, help="a folder (default: the film, its trailer and others)")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "film")
    parser.add_argument("--captioner", default="tiny", help="as `sora-jax caption` takes it")
    parser.add_argument("--rows", type=int, default=32, help="to pack")
    args = parser.parse_args()
    try:
        source = args.footage or args.workdir / "footage"
        if args.footage is None:
            real_footage.film(source)
            real_footage.fetch(source)
        print(run(source, args.workdir, args.captioner, args.rows))
    except (InputError, real_footage.Unavailable, OSError) as error:  # OSError: somebody else has the port
        sys.exit(f"film: {error}")


def run(source: Path, work: Path, captioner: str, rows: int) -> str:
    """The table. Raises InputError; SystemExit where a command fails."""
    curated = command(work, "curated", "data", "curate", source, "--config", ROOT / "configs" / "curate.py")
    command(work, "clips", "data", "build", work / "curated", "--fps", 8)
    told = command(work, "told", "caption", work / "clips", "--captioner", captioner)
    with serve(by_colours, PORT):
        url = f"openai:http://127.0.0.1:{PORT}/v1#colours"
        asked = command(work, "asked", "caption", work / "clips", "--captioner", url)
    made = command(work, "latents", "data", "latents", work / "told", "--model", "tiny", *SMALL)
    z = dataset.open_latents(work / "latents")
    packed, batch = pack(z, rows)
    packing.draw(batch, work / "rows.png")
    clips, others = dataset.open_clips(work / "told"), dataset.open_clips(work / "asked")
    sheet(clips, others, work / "told.jpg")
    sizes = [row["z"].shape[:3] for row in z]
    faults = ", ".join(f"{count} {why}" for why, count in Counter(curated["dropped"]).most_common())
    lines = {
        "curated": f"{curated['files']} files, {60 * curated['hours']:.1f} minutes: of {curated['shots']} shots "
        f"{curated['kept']} kept, {60 * curated['kept_hours']:.1f} minutes; dropped {faults}",
        "clips": f"{len(clips)} of {span((c['frames'], c['height'], c['width']) for c in clips)} pixels",
        "told": f"{told['told']} told by {captioner}, {told['failed']} failed",
        "asked": f"{asked['told']} told by a server that knows colours, {asked['failed']} failed",
        "latents": f"{made['records']} of {span(sizes)}, {len(set(sizes))} sizes, {made['skipped']} skipped",
        "rows": packed,
    }
    spent = spendings(work)
    head = "| stage | | minutes | GiB at most |\n|---|---|---|---|"
    cost = {name: f"{spent[name]['seconds'] / 60:.1f} | {spent[name]['GiB']:.1f}" for name in spent}
    return "\n".join([head, *(f"| {name} | {said} | {cost.get(name, ' | ')} |" for name, said in lines.items())])


def command(work: Path, name: str, *words) -> dict:
    """Runs `sora-jax ... --out WORK/name`, notes what it took, if it was not finished yet, and returns its JSON."""
    out, began = work / name, time.monotonic()
    finished = (out / "report.json").exists()
    argv = [sys.executable, "-m", "sora_jax.cli", *map(str, words), "--out", str(out)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    print(f"{name}: sora-jax {' '.join(argv[3:])}", file=sys.stderr)
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if not finished:
        spent = spendings(work)
        before = spent.get(name, {"seconds": 0.0, "GiB": 0.0})
        spent[name] = {
            "seconds": before["seconds"] + time.monotonic() - began,
            "GiB": max(before["GiB"], used.ru_maxrss / 2**20),
        }
        (work / "spent.json").write_text(json.dumps(spent, indent=1))
    if process.returncode:
        sys.exit(f"film: {name} ended with {process.returncode}; what is done is kept, the same command goes on")
    return json.loads(said.splitlines()[-1])


def spendings(work: Path) -> dict:
    path = work / "spent.json"
    return json.loads(path.read_text()) if path.exists() else {}


def by_colours(body: dict, n: int) -> Answer:
    """What the server answers: the nearest colours of the first and the last picture, which is true and little."""
    urls = [part["image_url"]["url"] for part in body["messages"][1]["content"] if part["type"] == "image_url"]
    first, last = (colour(base64.b64decode(url.split(",")[1])) for url in (urls[0], urls[-1]))
    long = f"The picture is mostly {first}" + ("." if first == last else f", and in the end mostly {last}.")
    return Answer(json.dumps({"short": f"mostly {first}", "long": long, "confidence": 0.5}))


def colour(jpeg: bytes) -> str:
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).resize((32, 32)), np.float64).reshape(-1, 1, 3)
    nearest = np.abs(pixels - np.array(list(COLOURS.values()))).sum(-1).argmin(1)
    return list(COLOURS)[np.bincount(nearest).argmax()]


def pack(z, rows: int) -> tuple[str, dict]:
    """What is to be said of so many rows, packed as training does, and the first of them."""
    model = load("tiny")
    data = ConfigDict(ROW | {"drop": 0.0, "captions": {"short": 0.5, "long": 0.5}, "text_dropout": 0.1})
    stream = pipeline.latents(z, data, tokenizer=model.tokenizer, patch=model.dit.patch, seed=0)
    packed = [next(stream)[0] for _ in range(rows)]
    batch = {name: np.concatenate([step[name] for step in packed]) for name in packed[0]}
    found = packing.report(packing.lengths(batch["seg"]), ROW["row"])
    said = f"{rows} rows of {ROW['row']:,} patches, {found['fill']:.1%} full, {found['clips']:.1f} clips a row"
    return said, {name: x[:DRAWN] for name, x in batch.items()}


def span(sizes) -> str:
    """The smallest and the largest of some sizes (frames, height, width)."""
    sizes = sorted(sizes, key=np.prod)
    return " to ".join("x".join(map(str, map(int, size))) for size in (sizes[0], sizes[-1]))


def sheet(clips, others, path: Path) -> None:
    chosen = footage.spread(len(clips), SHOWN)
    looks = [footage.glance(clips[int(i)], 6, 320 * 180) for i in chosen]
    said = [
        f"{clips[int(i)]['name']} | came with: {clips[int(i)]['caption'] or 'nothing'} | told: "
        f"{clips[int(i)]['captions'][-1]} | by colours: {others[int(i)]['captions'][-1]}"
        for i in chosen
    ]
    media.contact_sheet(looks, said, path, frames=6, cell=240)


if __name__ == "__main__":
    main()
