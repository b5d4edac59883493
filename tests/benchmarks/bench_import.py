"""What an import costs: a file of a published transformer's true shape, in random bfloat16, in shards as diffusers has
them, is made a model folder, exported, and imported again, each in a process of its own.

    python tests/benchmarks/bench_import.py [wan-1.3b] [--dir DIR] [--shard GB]

Needs disk for four times the weights; what it writes is removed. Peak memory is the process's own (ru_maxrss).
"""

import argparse
import filecmp
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from sora_jax.weights import convert, files, published, wan
from sora_jax.weights.names import places

BF16 = np.dtype(ml_dtypes.bfloat16)


def make(name: str, home: Path, shard: float) -> None:
    """A transformer as diffusers saves it, its values drawn once and repeated."""
    fields = published.MODELS[name].dit
    home.mkdir(parents=True)
    found = {"text_in/kernel": (4096, fields["width"])}
    shapes = {path: leaf.shape for path, leaf in convert.flat(wan.shapes(fields, found)).items()}
    (home / "config.json").write_text(json.dumps(wan.published(fields, found)))
    drawn = np.random.default_rng(0).standard_normal(1 << 22, np.float32).astype(BF16)
    parts: list[dict] = [{}]
    for name, place in places(wan.names(fields), "diffusers", fields["depth"]).items():
        shape = shapes[place.ours] if place.index is None else shapes[place.ours][1:]
        shape = place.layout.theirs(np.broadcast_to(np.zeros((), np.uint8), shape)).shape
        if sum(int(np.prod(s)) * 2 for _, s in parts[-1].values()) + int(np.prod(shape)) * 2 > shard * 1e9:
            parts.append({})
        parts[-1][name] = (BF16, shape)
    for i, entries in enumerate(parts):
        with files.Writer(home / f"part-{i}.safetensors", entries) as writer:
            for n, (name, (_, shape)) in enumerate(entries.items()):
                writer.write(name, np.resize(np.roll(drawn, 7919 * n), shape))
    index = {"weight_map": {name: f"part-{i}.safetensors" for i, entries in enumerate(parts) for name in entries}}
    (home / "model.safetensors.index.json").write_text(json.dumps(index))


def measured(verb: str, source: Path, out: Path) -> dict:
    """Runs one verb in a process of its own: its seconds and the most memory it held, before and in all."""
    line = [sys.executable, __file__, "--run", verb, str(source), str(out)]
    return json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def run(verb: str, source: str, out: str) -> None:
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    import jax  # noqa: F401 (both need it; its own memory is not theirs)

    before, began = peak(), time.perf_counter()
    convert.import_([source], out) if verb == "import" else convert.export(source, out)
    seconds = time.perf_counter() - began
    print(json.dumps({"verb": verb, "seconds": round(seconds, 1), "imports_gb": before, "peak_gb": round(peak(), 3)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name", nargs="?", default="wan-1.3b", choices=published.MODELS)
    parser.add_argument("--dir")
    parser.add_argument("--shard", type=float, default=1.0)
    parser.add_argument("--run", nargs=3)
    args = parser.parse_args()
    if args.run:
        run(*args.run)
        sys.exit()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        at = Path(folder)
        make(args.name, at / "theirs", args.shard)
        sizes = [path.stat().st_size / 1e9 for path in sorted((at / "theirs").glob("*.safetensors"))]
        print(f"{args.name}: {sum(sizes):.2f} GB in {len(sizes)} files, the largest of {max(sizes):.2f} GB")
        print(measured("import", at / "theirs", at / "ours"))
        print(measured("export", at / "ours", at / "back"))
        print(measured("import", at / "back", at / "again"))
        same = filecmp.cmp(at / "ours" / "dit.safetensors", at / "again" / "dit.safetensors", shallow=False)
        print("import(export(x)) == x, bit for bit:", same)
