"""The VAE's memory over length, and its speed beside diffusers' on the same weights.

    python tests/benchmarks/bench_vae.py memory
    python tests/benchmarks/bench_vae.py speed --peer .venv-parity/bin/python

memory: the peak of a process that decodes, and one that encodes, clips of 81 and of 321 frames, minus what it held
before. Frames are made, and thrown away, piece by piece: what is left is what streaming holds.
speed: 17x256x256 at 1/8 of Wan 2.1's width, float32, two threads each, in turns; both warmed up. The peer's Python is
that of `make parity`, with torch and diffusers.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "parity")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

WIDTH, LATENTS = 12, (5, 32, 32)


def held(verb: str, frames: int) -> None:
    """Prints the peak of a streamed pass in MiB, beyond what was held before it."""
    import jax
    import numpy as np
    from measured import measured, rss

    from sora_jax.models.vae import VAE
    from sora_jax.models.vae_stream import stream_decode, stream_encode

    vae, side = VAE(width=8), 64
    params = jax.jit(vae.init)(jax.random.key(0, impl="rbg"), np.zeros((1, 5, 32, 32, 3), np.float32))["params"]

    def run(frames: int) -> None:
        if verb == "encode":
            chunks = (np.zeros((1, n, side, side, 3), np.float32) for n in (1, *[4] * ((frames - 1) // 4)))
            pieces = stream_encode(vae, params, chunks)
        else:
            z = np.zeros((1, 1 + (frames - 1) // 4, side // 8, side // 8, 16), np.float32)
            pieces = stream_decode(vae, params, z, 1)
        for piece in pieces:
            piece.block_until_ready()

    run(9)  # compiles
    before = rss()
    _, _, peak, _ = measured(lambda: run(frames))
    print(before / 2**20, peak / 2**20)


def memory() -> None:
    for verb in ("decode", "encode"):
        peaks = {}
        for frames in (81, 321):
            out = subprocess.run(
                [sys.executable, __file__, "held", "--verb", verb, "--frames", str(frames)],
                check=True, capture_output=True, text=True,
            ).stdout  # fmt: skip
            before, peaks[frames] = (float(x) for x in out.split())
            print(f"{verb} {frames} frames: {before:.0f} MiB before, {peaks[frames]:.0f} MiB at its peak", flush=True)
        print(f"{verb}: peak(321) / peak(81) = {peaks[321] / peaks[81]:.3f}")


def speed(peer: str, rounds: int) -> None:
    import jax
    import numpy as np
    from drawn import drawn, weight

    from sora_jax.model import unflat
    from sora_jax.models.vae import VAE
    from sora_jax.models.vae_stream import stream_decode
    from sora_jax.weights import convert, wan_vae
    from sora_jax.weights.names import places

    fields = dict(width=WIDTH, multipliers=(1, 2, 4, 4), blocks=2, time=(1, 2, 2), space=(2, 2, 2), channels=16)
    shapes = convert.flat(wan_vae.shapes(fields, {}))
    leaves = {name: np.zeros(shapes[name].shape, np.float32) for name in wan_vae.CONSTANTS}
    leaves["latent_std"] += 1
    for name, place in places(wan_vae.names(fields), "diffusers", 0).items():
        theirs = place.layout.theirs(np.zeros(shapes[place.ours].shape, bool)).shape
        leaves[place.ours] = np.ascontiguousarray(place.layout.ours(weight(name, theirs)))
    vae, params = VAE(**fields), jax.tree.map(jax.numpy.asarray, unflat(leaves))
    z = drawn("z", (1, 16, *LATENTS)).transpose(0, 2, 3, 4, 1)

    def ours() -> list[float]:
        wall, cpu = time.perf_counter(), time.process_time()
        pixels = np.concatenate([np.asarray(x) for x in stream_decode(vae, params, z, 1)], 1)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return [wall, cpu, float(np.abs(np.clip(pixels, -1, 1), dtype=np.float64).mean())]

    command = [peer, ROOT / "tests" / "parity" / "time_wan_vae.py", str(WIDTH), "x".join(map(str, LATENTS))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def theirs() -> list[float]:
            process.stdin.write("\n")
            process.stdin.flush()
            return [float(x) for x in process.stdout.readline().split()]

        mine, others = ours(), theirs()  # warmed up
        assert abs(mine[2] - others[2]) < 1e-5, "the same pixels"
        turns = [(ours(), theirs()) for _ in range(rounds)]
        process.stdin.close()
    best = {name: [min(turn[i][k] for turn in turns) for k in (0, 1)] for i, name in enumerate(("ours", "diffusers"))}
    for name, (wall, cpu) in best.items():
        print(f"{name}: {wall:.2f} s, {cpu:.2f} s of CPU time (the least of {rounds} turns)")
    print(
        "ours / diffusers: {:.2f}, of CPU time {:.2f}".format(*(best["ours"][k] / best["diffusers"][k] for k in (0, 1)))
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "speed", "held"))
    parser.add_argument("--peer", default="python", help="a Python with torch and diffusers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--verb", default="decode", help=argparse.SUPPRESS)
    parser.add_argument("--frames", type=int, default=81, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.what == "memory":
        memory()
    elif args.what == "held":
        held(args.verb, args.frames)
    else:
        speed(args.peer, args.rounds)
