"""How much of a row is padding, how even the ranks are, and what packing costs, next to padding to a size.

    python tests/benchmarks/bench_packing.py [--json]

200,000 clips: 30% images, 70% videos of 17 to 77 frames (1 + 4k); short side 256 to 720, aspect ratio 1 to 16:9 either
way; tokens at 8x8x4 with patches of 1x2x2 (so 720p is 3,600 a latent frame). What is longer than a row (one clip in
2,700) loses its last frames.
Every way of batching gives 64 ranks a row of 65,536 patches a step; cost as in packing.py, for the width 1536.
"""

import argparse
import json
import time

import numpy as np
from jaxtyping import Int

from sora_jax.data import packing

ROW, RANKS, CLIPS = 65_536, 64, 200_000


def draw_lengths(count: int, seed: int = 0) -> Int[np.ndarray, "count"]:
    """Patches of random clips."""
    rng = np.random.default_rng(seed)
    short = rng.integers(256, 721, count)
    long = np.minimum(short * np.exp(rng.uniform(0, np.log(16 / 9), count)), 1280).astype(int)
    frame = -(-(short // 8) // 2) * -(-(long // 8) // 2)
    frames = np.where(rng.random(count) < 0.3, 1, rng.integers(4, 20, count) + 1)
    return frame * np.minimum(frames, ROW // frame)


def packed(lengths, hosts: int, open_rows: int, lookahead: int) -> tuple[list[list[int]], float]:
    """Rows as `hosts` packers that know nothing of each other give them to 64 ranks; CPU microseconds a clip."""
    steps, seconds = [], time.process_time()
    for host in range(hosts):
        mine = lengths[host::hosts].tolist()
        packer = packing.Packer(ROW, len(mine), 256, open_rows, lookahead // hosts)
        steps.append([])
        for i, length in enumerate(mine):
            packer.add(i, (length, 1))
            if (step := packer.take(RANKS // hosts)) is not None:
                steps[-1].append([[mine[clip] for clip in row] for row in step])
    seconds = time.process_time() - seconds
    return [row for step in zip(*steps) for rows in step for row in rows], 1e6 * seconds / len(lengths)


def padded(lengths, sizes) -> dict[str, float]:
    """Every clip padded to the least of `sizes` that holds it, batches of one size filling a row.

    A step takes whatever batch of 64 rows is full first; its ranks do the same work, most of it on padding.
    """
    size = np.asarray(sizes)[np.searchsorted(sizes, lengths)]
    return {"padding": float(1 - lengths.sum() / size.sum()), "balance": 1.0}


def bench() -> dict[str, dict]:
    """Every way of batching -> its figures."""
    lengths = draw_lengths(CLIPS)
    real = lengths + packing.ATTENTION * lengths.astype(float) ** 2  # the cost of the clips themselves, nothing wasted
    found = {}
    for name, sizes in (("pad to the longest", [ROW]), ("power-of-two buckets", [2**n for n in range(8, 17)])):
        size = np.asarray(sizes)[np.searchsorted(sizes, lengths)]
        spent = (size + packing.ATTENTION * size.astype(float) ** 2).sum()
        found[name] = padded(lengths, sizes) | {"useful": float(real.sum() / spent)}
    for hosts, lookahead in ((1, 0), (1, 256), (1, 512), (1, 1024), (8, 1024)):
        rows, microseconds = packed(lengths, hosts, 32, lookahead)
        figures = packing.report(rows, ROW, RANKS)
        costs = np.array([packing.cost(row, ROW) for row in rows]).reshape(-1, RANKS)
        useful = sum(n + packing.ATTENTION * n * n for row in rows for n in row) / (costs.max(1).sum() * RANKS)
        name = f"packed, look-ahead {lookahead}" + (f", {hosts} hosts apart" if hosts > 1 else "")
        found[name] = figures | {"microseconds": microseconds, "useful": useful}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of the table")
    found = bench()
    if parser.parse_args().json:
        print(json.dumps(found))
        return
    print(
        f"{CLIPS} clips, rows of {ROW}, {RANKS} ranks; 'useful': the share of the machine's time that real patches get"
    )
    print(f"{'':38} {'padding':>8} {'mean/max cost':>14} {'useful':>7} {'us a clip':>10}")
    for name, x in found.items():
        time = f"{x['microseconds']:10.1f}" if "microseconds" in x else " " * 10
        print(f"{name:38} {x['padding']:8.2%} {x['balance']:14.3f} {x['useful']:7.1%} {time}")


if __name__ == "__main__":
    main()
