"""How long a training takes to its first step, the first time and again with what XLA compiled then; and --help.

    python tests/benchmarks/bench_start.py [--config configs/dit.py:smoke] [--config.KEY=VALUE ...]

Starts the training twice in processes of their own, each in a new workdir, the second with the first one's compilation
cache, and prints the seconds from the start of the process to the end of the first step; and of `sora-jax --help`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def first_step(config: str, settings: list[str], workdir: Path, cache: Path) -> float:
    """Seconds from nothing to the first line of metrics."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "sora_jax.cli", "train", "--config", config, "--workdir", str(workdir)]
    process = subprocess.Popen(
        [*command, "--config.log_every=1", *settings],
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = workdir / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        if process.poll() is not None:
            sys.exit(f"the training ended with code {process.returncode} before its first step")
        time.sleep(0.01)
    seconds = time.perf_counter() - began
    process.send_signal(signal.SIGKILL)
    process.wait()
    return seconds


def to_help() -> float:
    """Seconds that the command takes to say what it knows: the least of five."""

    def once() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "sora_jax.cli", "--help"], stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - began

    return min(once() for _ in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/dit.py:smoke")
    args, settings = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        cold, warm = (first_step(args.config, settings, Path(folder) / name, Path(folder) / "cache") for name in "ab")
    numbers = {"cold_s": round(cold, 1), "warm_s": round(warm, 1), "warm/cold": round(warm / cold, 3)}
    print(json.dumps({**numbers, "help_s": round(to_help(), 2)}))


if __name__ == "__main__":
    main()
