"""Curation beside plain decoding, in frames a second of one core. (What it keeps of a film: `bench_film.py`.)

    python tests/benchmarks/bench_curate.py [--rounds 3] [--workdir runs/film]

The film's trailer (1,323 frames, 1280x720) in turns: decoded and shrunk to the working size and no more; scanned as
`sora-jax data curate` scans it, without and with RapidOCR. CPU time, all threads; the best of the rounds, as other work
on the machine only ever adds. Needs the network, or a package cache, once.
"""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import real_footage  # noqa: E402

from sora_jax import media  # noqa: E402
from sora_jax.data import scores, shots  # noqa: E402
from sora_jax.train import configs  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "film")
    args = parser.parse_args()
    config = configs.read(str(ROOT / "configs" / "curate.py"))
    try:
        _, trailer = real_footage.film(args.workdir / "footage")
    except real_footage.Unavailable as error:
        sys.exit(f"curation: {error}")
    print(table(compare(trailer, config.scan.to_dict(), args.rounds)))


def compare(path: Path, scan: dict, rounds: int) -> dict[str, float]:
    """Frames a second of CPU time for each way to go through a file."""
    ways = {
        "decoded at the working size": lambda: sum(1 for _ in media.frames(path, within=scan["size"])),
        "scanned": lambda: seen(path, scan | {"text": False}),
    }
    if scores.can_read():
        ways["scanned, text read"] = lambda: seen(path, scan)
        scores.text(next(media.frames(path, within=scan["size"])))  # loads it, once a process
    best = dict.fromkeys(ways, 0.0)
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.process_time()
            frames = way()
            best[name] = max(best[name], frames / (time.process_time() - began))
    return best


def seen(path: Path, scan: dict) -> int:
    return sum(record["frames"] for record in shots.records(path, path.name, [], scan))


def table(best: dict[str, float]) -> str:
    plain = next(iter(best.values()))
    lines = [f"| {name} | {speed:.0f} | {speed / plain:.2f} |" for name, speed in best.items()]
    return "\n".join(["| | frames/s/core | of decoding |", "|---|---|---|", *lines])


if __name__ == "__main__":
    main()
