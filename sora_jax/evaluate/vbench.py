"""A model's videos in the layout that VBench's own code reads (arXiv:2311.17982; package `vbench`, version 0.1.5).

    OUT/videos/PROMPT-0.mp4 .. PROMPT-4.mp4   VBench wants five samples of each of its prompts
    OUT/prompts.json                          {file: prompt}, for prompts that are not VBench's
    OUT/settings.json                         what they were painted with: a second run with others is refused

With VBench's own prompts (VBench_full_info.json, inside its package):

    sora-jax evaluate vbench VBench_full_info.json --model tiny --dimensions color --out out/vbench
    vbench evaluate --dimension color --videos_path out/vbench/videos

and with any others, a text file of one prompt a line:

    sora-jax evaluate vbench prompts.txt --model tiny --out out/mine
    vbench evaluate --dimension imaging_quality --videos_path out/mine/videos --mode custom_input \\
        --prompt_file out/mine/prompts.json
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sora_jax import media
from sora_jax.data import shards
from sora_jax.errors import InputError, local

SAMPLES = 5  # that VBench reads of each prompt in its standard mode
NAME = 240  # bytes of a file's name that a prompt may fill; the systems that matter allow 255, VBench's longest has 209


def prompts(path: str | Path, dimensions: Sequence[str] = ()) -> list[str]:
    """The prompts of VBench's JSON, of these dimensions alone where any are given, or the lines of a text file.

    Raises InputError: no such file, not what it should be, no prompt in it, or a dimension that none has.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path} cannot be read: give VBench's VBench_full_info.json, or a prompt a line") from None
    if path.suffix != ".json":
        if dimensions:
            raise InputError(f"{path} says nothing of dimensions: leave out --dimensions, or give VBench's JSON")
        found = [line.strip() for line in text.splitlines()]
    else:
        try:
            rows = [(row["prompt_en"], row["dimension"]) for row in json.loads(text)]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path} is not VBench's: its rows have a prompt_en and a list, dimension") from None
        known = sorted({name for _, names in rows for name in names})
        for name in dimensions:
            if name not in known:
                raise InputError(f"no prompt of {path} is of dimension {name!r}: choose among {', '.join(known)}")
        found = [prompt for prompt, names in rows if not dimensions or set(names) & set(dimensions)]
    found = list(dict.fromkeys(prompt for prompt in found if prompt))
    if not found:
        raise InputError(f"there is no prompt in {path}")
    return found


def file_name(prompt: str, sample: int) -> str:
    """PROMPT-SAMPLE.mp4, as VBench looks for it; what no file's name can hold is replaced or cut."""
    kept = prompt.replace("/", " ").encode()[:NAME].decode(errors="ignore").strip()
    return f"{kept}-{sample}.mp4"


def export(
    source: str | Path,
    out: str | Path,
    model="tiny",
    *,
    dimensions: Sequence[str] = (),
    samples: int = SAMPLES,
    size: tuple[int, int] = (64, 64),
    frames: int = 17,
    seed: int = 0,
    steps: int | None = None,
    batch: int = 8,
) -> dict:
    """Paints every prompt `samples` times into `out` (see the file's head); what is there already is not painted again.

    size: (width, height); sample i has the seed `seed` + i; batch: videos painted together, whose noise each has from
    its place among them, so that what is painted later is what would have been painted at once.
    Returns {"out", "prompts", "videos", "painted"}. Raises InputError as `prompts` and `load` do, where two prompts
    would have one file's name, and for a folder that was begun with other settings.
    """
    from tqdm import tqdm

    asked = prompts(source, dimensions)
    settings = dict(model=str(model) if isinstance(model, str | Path) else type(model).__name__, size=list(size))
    settings |= dict(frames=frames, seed=seed, steps=steps, batch=batch, prompts=shards.digest(asked))
    out = local(out).expanduser()
    named = {file_name(prompt, i): (prompt, i) for prompt in asked for i in range(samples)}
    if len(named) < len(asked) * samples:
        raise InputError(f"{source} has prompts that are alike in their first {NAME} bytes: shorten them")
    if not hasattr(model, "generate"):
        from sora_jax.model import load

        model = load(model)
    folder, said = out / "videos", out / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not said.exists():
        shards.put(said, json.dumps(settings, indent=1))
    for name, before in json.loads(said.read_text()).items():
        if before != settings[name]:
            raise InputError(f"{out} was begun with {name} = {before!r}, not {settings[name]!r}: choose another --out")
    shards.put(out / "prompts.json", json.dumps({name: prompt for name, (prompt, _) in named.items()}, indent=1))
    there = {name for name in named if (folder / name).exists()}
    with tqdm(total=len(named), initial=len(there), desc="painting", unit="video", file=sys.stderr) as bar:
        for i in range(samples):
            names = [file_name(prompt, i) for prompt in asked]
            for some in (names[at : at + batch] for at in range(0, len(names), batch)):
                if there.issuperset(some):
                    continue
                said = [named[name][0] for name in some]
                made = model.generate(said, size=size, frames=frames, seed=seed + i, steps=steps)
                for name, video in zip(some, made, strict=True):
                    if name not in there:
                        media.write(video, folder / name)
                        bar.update()
    return {"out": str(out), "prompts": len(asked), "videos": len(named), "painted": len(named) - len(there)}
