"""How fast the embedded world is drawn and read: clips a second on one core, and through tf.data on all of them.

python tests/benchmarks/bench_worlds.py [--clips 300]
"""

import argparse
import os
import time

from sora_jax.data import worlds
from sora_jax.data.oracle import oracle

SIZE, FRAMES = (64, 64), 17


def rate(work, items) -> float:
    """Items a second of this process's own CPU time, whatever else the machine is doing."""
    began = time.process_time()
    for item in items:
        work(item)
    return len(items) / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=300)
    seeds = range(parser.parse_args().clips)

    def clip(seed):
        scene = worlds.sample(seed, size=SIZE, frames=FRAMES)
        return worlds.render(scene), worlds.captions(scene)

    clip(0)
    scenes = [worlds.sample(seed, size=SIZE, frames=FRAMES) for seed in seeds]
    print(f"{len(seeds)} clips of {SIZE[0]}x{SIZE[1]}x{FRAMES}, clips/s on one core")
    print(f"  sample {rate(lambda seed: worlds.sample(seed, size=SIZE, frames=FRAMES), seeds):8.0f}")
    print(f"  render {rate(worlds.render, scenes):8.0f}")
    print(f"  clip   {rate(clip, seeds):8.0f}   (sample, render, captions; bar: 200)")
    print(f"  oracle {rate(oracle, [worlds.render(scene) for scene in scenes[:40]]):8.1f}")

    dataset = worlds.clips(seeds, size=SIZE, frames=FRAMES)
    next(iter(dataset))
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in dataset:
        pass
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"  tf.data {len(seeds) / wall:7.0f} clips/s on {os.cpu_count()} cores, {len(seeds) / cpu:.0f} a core")


if __name__ == "__main__":
    main()
