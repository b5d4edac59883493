"""Runs the members of a sweep, each a training with settings of its own, and shows their results in one table.

    python launch/sweep.py configs/sweeps/scaling.py --out runs/scaling [--jobs 2] [--dry-run] [--config.steps=100]

A sweep is a Python file with CONFIG, the config all members share, and `sweep(add)`, which calls add(NAME, SETTINGS)
for each: {"dit.width": 64, ...}. A member's workdir is OUT/NAME, what it said is OUT/NAME.log (for a bucket,
runs/SWEEP/NAME.log). Stopped or killed, the same command goes on: members that are done are not run again, others
resume from their checkpoints. One that fails does not stop the rest; its last words are in the table. Settings after
the flags are given to all members.

`--on COMMAND` runs each member somewhere else: COMMAND, in which {name} is the member's, is put before `sora-jax train
...`. A TPU slice for each, in a bucket for all, two at a time:

    python launch/sweep.py SWEEP.py --out gs://BUCKET/scaling --jobs 2 --config.mesh.fsdp=-1 \\
        --on "bash launch/queued.sh --topology v6e:4x4 --zone us-east5-b --name {name} --yes --"
"""

import argparse
import importlib.util
import json
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from etils import epath

from sora_jax.errors import InputError
from sora_jax.train import configs


def members(path: str) -> tuple[str, dict[str, dict]]:
    """(the config they share, {name: settings}) of a sweep's file.

    Raises InputError: no such file, one that is no sweep, a name given twice.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no sweep {path}; give a file such as configs/sweeps/scaling.py")
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location("sweep_file", path))
    found: dict[str, dict] = {}

    def add(name: str, settings: dict) -> None:
        if name in found:
            raise InputError(f"{path} adds {name!r} twice: give each member a name of its own")
        found[name] = settings

    try:
        module.__spec__.loader.exec_module(module)
        config, sweep = module.CONFIG, module.sweep
    except (AttributeError, SyntaxError) as error:
        raise InputError(f"{path} is not a sweep: it must be Python with CONFIG and sweep(add) ({error})") from None
    sweep(add)
    return config, found


def command(config: str, workdir: str, settings: dict, common: list[str], on: str, name: str) -> list[str]:
    """What trains one member; elsewhere that may be several hosts."""
    flags = [f"--config.{key}={value}" for key, value in settings.items()] + common
    here = [sys.executable, "-m", "sora_jax.cli"] if not on else [*shlex.split(on.replace("{name}", name)), "sora-jax"]
    return [*here, "train", *(["--distributed"] if on else []), "--config", config, "--workdir", workdir, *flags]


def train(line: list[str], log: Path, metrics: epath.Path, steps: int) -> dict:
    """Runs a member to its end: {"step", "loss", ...} as training says it, or {"error"} with its last words.

    Training that is told to stop saves, and ends well: its end is `steps`.
    """
    with log.open("a") as file:
        ended = subprocess.run(line, stdout=subprocess.PIPE, stderr=file, text=True)
    if ended.returncode:
        said = (log.read_text() + ended.stdout).replace("\r", "\n").strip().splitlines()
        return {"error": f"exit code {ended.returncode}: {said[-1] if said else 'it said nothing'}"}
    try:
        found = json.loads(ended.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):  # elsewhere its words may stay there: its metrics are in the workdir
        trained = [line for line in read(metrics) if "loss" in line]
        if not trained:
            return {"error": f"it ended without a result, and there is none in {metrics}"}
        found = {name: trained[-1].get(name) for name in ("step", "loss", "skipped")}
    if found["step"] < steps:
        return {"error": f"stopped at step {found['step']} of {steps}"}
    return found


def summary(path: Path) -> dict:
    """What a member came to that was done before, and what it was asked; nothing where it was not."""
    return json.loads(path.read_text()) if path.is_file() else {}


def read(metrics: epath.Path) -> list[dict]:
    """The lines of a member's metrics, none where there are none yet."""
    return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []


def held_out(metrics: epath.Path) -> dict:
    """The last held-out numbers of a member, by the path of its metrics."""
    judged = [line for line in read(metrics) if "eval/loss" in line]
    return judged[-1] if judged else {}


def table(results: dict[str, dict], settings: dict[str, dict]) -> str:
    """A line per member: what it was given, and what came of it."""
    keys = list(dict.fromkeys(key for given in settings.values() for key in given))
    lines = [["", *keys, "step", "loss", "held out"]]
    for name, result in results.items():
        numbers = [f"{n:.4f}" if n is not None else "-" for n in (result.get("loss"), result.get("eval/loss"))]
        come = ["-", "-", "-", result["error"]] if "error" in result else [str(result["step"]), *numbers]
        lines.append([name, *(str(settings[name].get(key, "")) for key in keys), *come])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(f"{word:<{w}}" for word, w in zip(line, [*widths, 0])).rstrip() for line in lines)


def run(path: str, out: str, common: list[str], jobs: int = 1, on: str = "", dry: bool = False) -> bool:
    """Runs what is left of a sweep, prints the table and writes OUT/results.json. True when every member is done."""
    config, found = members(path)
    steps, asked = {}, {}
    for name, settings in found.items():  # a mistake in any of them is told before the first begins
        all_ = [f"{key}={value}" for key, value in settings.items()] + [
            each.removeprefix("--config.") for each in common
        ]
        steps[name] = configs.read(config, all_).steps
        asked[name] = [each for each in all_ if not each.startswith("steps=")]  # more of them go on with the same
        if "/" in name or name.startswith("."):
            raise InputError(f"{path} adds {name!r}: a member's name is that of a folder")
    lines = {name: command(config, f"{out}/{name}", given, common, on, name) for name, given in found.items()}
    if dry:
        print("\n".join(map(shlex.join, lines.values())))
        return True
    folder = Path("runs", Path(path).stem) if "://" in out else Path(out)  # a bucket is no place for logs that grow
    folder.mkdir(parents=True, exist_ok=True)
    before = {name: summary(folder / f"{name}.json") for name in lines}
    for name, done in before.items():
        if done.pop("asked", asked[name]) != asked[name]:
            raise InputError(
                f"{folder / name}.json is of other settings than {' '.join(asked[name])}: give another --out"
            )
    results: dict[str, dict] = {}

    def one(number: int, name: str) -> None:
        metrics, result, took = epath.Path(out) / name / "metrics.jsonl", before[name], "done before"
        if result.get("step", 0) < steps[name]:
            began = time.perf_counter()
            print(f"[{number}/{len(lines)}] {name} begins", file=sys.stderr)
            result = train(lines[name], folder / f"{name}.log", metrics, steps[name])
            if "error" not in result:
                (folder / f"{name}.json").write_text(json.dumps(result | {"asked": asked[name]}) + "\n")
            took = f"{(time.perf_counter() - began) / 60:.1f} min"
        results[name] = result | {k: v for k, v in held_out(metrics).items() if k != "step"}
        print(f"[{number}/{len(lines)}] {name}: {results[name].get('error', took)}", file=sys.stderr)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, range(1, len(lines) + 1), lines))
    results = {name: results[name] for name in lines}
    (folder / "results.json").write_text(json.dumps({n: found[n] | results[n] for n in lines}, indent=1) + "\n")
    print(table(results, found))
    return not any("error" in result for result in results.values())


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("sweep", metavar="SWEEP.py")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="members at a time (default 1)")
    parser.add_argument("--on", default="", metavar="COMMAND", help="runs a member elsewhere; {name} is its name")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and do nothing")
    args, common = parser.parse_known_args(argv)
    if wrong := [word for word in common if not word.startswith("--config.") or "=" not in word]:
        parser.error(f"unrecognized argument: {wrong[0]} (a setting is --config.KEY=VALUE)")
    try:
        return 0 if run(args.sweep, args.out, common, args.jobs, args.on, args.dry_run) else 1
    except InputError as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
