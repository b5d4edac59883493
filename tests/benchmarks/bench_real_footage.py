"""The whole path on real footage: clips -> dataset -> VAE -> latents -> packed rows -> DiT -> a prompted mp4.

    python tests/benchmarks/bench_real_footage.py [--steps 300] [--workdir runs/real-footage] [--model DIR] [--json]

Clips and photographs of sizes from 176x144 to 1280x720 (`tests/real_footage.py` says which) are cut into pieces; whole
sources are held out, never frames of a clip that is trained on. The VAE trains for `--steps` on crops of what is left
(with --model, that model's VAE is used as it is) and is measured on clips at their native size. The DiT trains for as
many steps on latents of clips shrunk to the area of 192x108 pixels, 17 frames at 8 a second, and paints captions it
knows. Needs the network, or a package cache, once.
Prints a table of the VAE's PSNR, SSIM and LPIPS on each source, how full the rows were, and where the pictures are.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import real_footage  # noqa: E402

from sora_jax import media  # noqa: E402
from sora_jax.data import dataset, packing  # noqa: E402
from sora_jax.data.fitting import fit  # noqa: E402
from sora_jax.errors import InputError  # noqa: E402
from sora_jax.evaluate import metrics  # noqa: E402
from sora_jax.model import Model, load  # noqa: E402
from sora_jax.models.text import train_tokenizer  # noqa: E402
from sora_jax.train import configs, loop  # noqa: E402
from sora_jax.train.export import export  # noqa: E402

HELD_OUT = ("carphone_pristine.mp4", "cityCC0.mpg", "chelsea.png", "coins.png")
FRAMES = 17  # of a clip that the VAE is measured on
SMALL = {"max_pixels": 192 * 108, "max_frames": FRAMES, "fps": 8.0}  # what the DiT sees: a CPU should carry it
PATCH = (1, 2, 2)
NATIVE_ROW = 32_768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of the VAE, and of the DiT")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "real-footage")
    parser.add_argument("--model", help="a model folder, or tiny: its VAE instead of one trained here")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of the tables")
    args = parser.parse_args()
    try:
        result = run(args.workdir, args.steps, args.model)
    except (InputError, real_footage.Unavailable) as error:
        sys.exit(f"real footage: {error}")
    print(json.dumps(result) if args.json else tables(result))


def run(work: Path, steps: int, model: str | None = None) -> dict:
    """Everything above; what an earlier call finished in `work` is taken over, so other settings want another `work`.

    Raises InputError, Unavailable.
    """
    began = time.monotonic()
    sources = real_footage.fetch(work / "sources")
    for part, wanted in (("train", False), ("held_out", True)):
        if not (work / part / "clips" / "report.json").exists():
            part_of = [path for path in sources if (path.name in HELD_OUT) == wanted]
            real_footage.pieces(part_of, work / part / "pieces")
            dataset.build(work / part / "pieces", work / part / "clips")
    where = work / "vae-model" if model is None else model
    if model is None:
        export(train_vae(work, steps), where)
    vae = load(where)
    if not (work / "quality.json").exists():
        lines = [{"source": path.name, "held_out": path.name in HELD_OUT, **measure(vae, path)} for path in sources]
        (work / "quality.json").write_text(json.dumps(lines))
    for part in ("train", "held_out"):
        dataset.latents(work / part / "clips", where, work / part / "latents", **SMALL)
    prompts = chosen(work / "train" / "latents")
    log = train_dit(work, steps, where, prompts)
    sizes = list(prompts.values())
    videos = export(work / "dit", work / "model").generate(list(prompts), size=sizes, frames=FRAMES, guidance=2.0)
    sheet = media.contact_sheet(videos, list(prompts), work / "painted.png")
    media.contact_sheet(*rebuilt(vae, sources), work / "rebuilt.png", frames=6, cell=320)
    return {
        "steps": steps,
        "quality": json.loads((work / "quality.json").read_text()),
        "clips": {part: len(dataset.open_clips(work / part / "clips")) for part in ("train", "held_out")},
        "fill": float(np.mean([line["fill"] for line in log if "fill" in line])),
        "native_fill": native_fill(work / "train" / "clips"),
        "loss": [next(line["loss"] for line in lines if "loss" in line) for lines in (log, log[::-1])],
        "held_out_loss": next(line["eval/loss"] for line in log[::-1] if "eval/loss" in line),
        "painted": [str(video.save(work / f"painted-{i}.mp4")) for i, video in enumerate(videos)],
        "sheets": [str(work / "rebuilt.png"), str(sheet)],
        "minutes": (time.monotonic() - began) / 60,
    }


def train_vae(work: Path, steps: int) -> Path:
    """A workdir with a VAE of half the bundled one's width, trained on crops of the footage."""
    settings = {
        "steps": steps,
        "eval_every": 0,
        "picture_every": 0,
        "vae.width": 24,
        "data.source": work / "train" / "clips",
        "data.crops": ((2, 9, 96, 96), (6, 1, 128, 128)),
    }
    loop.train(read("vae.py:tiny", settings), work / "vae")
    return work / "vae"


def train_dit(work: Path, steps: int, vae: str | Path, prompts: dict) -> list[dict]:
    """Trains `work`/dit on the latents; the lines of its log."""
    tokenizer = train_tokenizer(dataset.captions_of(work / "train" / "clips"), work / "tokenizer.model", 512)
    settings = {
        "steps": steps,
        "log_every": 10,
        "eval_every": 0,
        "picture_every": 0,
        "vae_model": vae,
        "tokenizer": work / "tokenizer.model",
        "text.vocab": tokenizer.vocab,
        "dit.depth": 4,
        "dit.channels": load(vae).vae.channels,
        "dit.patch": PATCH,
        "data.path": work / "train" / "latents",
        "data.held_out": work / "held_out" / "latents",
        "data.row": 1024,
        "data.text_row": 512,
        "data.rows": 1,
        "data.segments": 8,
        "data.lookahead": 0,
        "sample.row": 512,
        "prompts": tuple((text, size, FRAMES) for text, size in prompts.items()),
    }
    loop.train(read("dit.py:tiny", settings), work / "dit")
    return [json.loads(line) for line in (work / "dit" / "metrics.jsonl").read_text().splitlines()]


def read(config: str, settings: dict):
    return configs.read(str(ROOT / "configs" / config), [f"{key}={value}" for key, value in settings.items()])


def measure(vae: Model, path: Path) -> dict:
    """Size and rate of a source, and how its beginning comes back from the VAE at its native size."""
    facts, clip = media.probe(path), first(vae, path)
    again = vae.decode(vae.encode(clip), clip.fps).frames
    numbers = {"psnr": metrics.psnr(clip.frames, again), "ssim": metrics.ssim(clip.frames, again)}
    distance = metrics.lpips()
    if distance is not None:
        some = sorted({0, len(again) // 2, len(again) - 1})
        pairs = [np.float32(x[some]) / 127.5 - 1 for x in (again, clip.frames)]
        numbers["lpips"] = float(np.mean(np.asarray(distance(*pairs))))
    return {key: facts[key] for key in ("width", "height", "fps", "frames")} | numbers


def first(vae: Model, path: Path) -> media.Video:
    """The first frames of a source, cropped to the VAE's grid as `dataset.latents` crops them."""
    return fit(media.read(path, max_frames=FRAMES), vae.grid)


def rebuilt(vae: Model, sources: list[Path]) -> tuple[list[media.Video], list[str]]:
    clips = [fit(first(vae, path), vae.grid, SMALL["max_pixels"]) for path in sources[:5]]
    pairs = [(clip, vae.decode(vae.encode(clip), clip.fps)) for clip in clips]
    names = [(path.name, "through the VAE") for path in sources[:5]]
    return [video for pair in pairs for video in pair], [name for pair in names for name in pair]


def native_fill(clips: Path, epochs: int = 200) -> float:
    """How full rows of 32,768 patches are with all clips at their native size, in any order."""
    held = dataset.open_clips(clips)
    sizes = [(1 + (row["frames"] - 1) // 4, row["height"] // 8, row["width"] // 8) for row in held]
    lengths = [int(np.prod(packing.grid_of(size, PATCH))) for size in sizes]
    packer = packing.Packer(NATIVE_ROW, 10**9, 10**6, 64)
    rng, rows, used = np.random.default_rng(0), 0, 0
    order = np.concatenate([rng.permutation(len(lengths)) for _ in range(epochs)])
    for number, index in enumerate(order):
        if lengths[index] <= NATIVE_ROW:
            packer.add(number, (lengths[index], 1))
        while (step := packer.take(1)) is not None:
            rows, used = rows + 1, used + sum(lengths[order[clip]] for clip in step[0])
    return used / (rows * NATIVE_ROW)


def chosen(latents: Path) -> dict[str, tuple[int, int]]:
    """Three captions of training clips, each with the size (width, height) of a clip it belongs to."""
    sizes = {row["caption_short"]: (row["width"], row["height"]) for row in dataset.open_latents(latents)}
    return {text: size for text, size in sizes.items() if any(word in text for word in ("daffodil", "rabbit", "taxi"))}


def tables(result: dict) -> str:
    head = "| source | size | fps | frames | held out | PSNR dB | SSIM | LPIPS |\n|---|---|---|---|---|---|---|---|"
    lines = [
        f"| {q['source']} | {q['width']}x{q['height']} | {q['fps']:.4g} | {q['frames']} "
        f"| {'yes' if q['held_out'] else ''} | {q['psnr']:.2f} | {q['ssim']:.3f} "
        f"| {format(q['lpips'], '.3f') if 'lpips' in q else 'not installed'} |"
        for q in result["quality"]
    ]
    clips, loss = result["clips"], result["loss"]
    facts = [
        f"{clips['train']} clips to train on, {clips['held_out']} held out; {result['steps']} steps of VAE and of DiT; "
        f"{result['minutes']:.1f} minutes",
        f"rows of 1,024 patches {result['fill']:.1%} full in training; rows of {NATIVE_ROW:,} at native size "
        f"{result['native_fill']:.1%} full",
        f"DiT loss {loss[0]:.3f} -> {loss[1]:.3f}, held out {result['held_out_loss']:.3f}",
        "pictures: " + " ".join(result["sheets"] + result["painted"]),
    ]
    return "\n".join([head, *lines, "", *facts])


if __name__ == "__main__":
    main()
