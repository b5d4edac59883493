"""What an evaluation leaves in a folder, and two of them side by side.

    OUT/result.json   the evaluation's name, its result (the JSON line it prints) and every case with its scores
    OUT/index.html    the same to look at, the clips inside: it needs nothing beside it

    compare(A, B)     for every score both have: their means over the cases both have, B - A, and its interval

The interval is a paired bootstrap's (Efron & Tibshirani 1993, section 13.3): cases, not scores, are drawn again with
replacement, the same for A and B, and 95 % of the differences lie inside it.
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from sora_jax.data import shards
from sora_jax.errors import InputError, local
from sora_jax.media import Video, encode

DRAWS, INSIDE = 4000, 0.95
SIDE = 192  # pixels that the longer side of a small clip is shown at, at least

STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse } td, th { padding: .15rem 1rem .15rem 0; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums }
.cases { display: flex; flex-wrap: wrap; gap: 1.4rem } .case { max-width: 30rem; font-size: 13px }
.clips { display: flex; flex-wrap: wrap; gap: .5rem } figure { margin: 0 } figcaption { opacity: .65 }
video, img { image-rendering: pixelated; border-radius: 3px; display: block }
.yes { color: #2f9e6e } .no { color: #d0603a }
"""


class Case(NamedTuple):
    """One scene, prompt or clip of an evaluation.

    group: what was tried (a task, a probe; "" where an evaluation tries one thing); name: the same case has the same
    name in every evaluation of the kind; scores: each a list, empty where the case does not ask; clips: to look at.
    """

    group: str
    name: str
    scores: dict[str, list[float]]
    prompt: str = ""
    clips: Mapping[str, Video] = MappingProxyType({})


def finite(scores: dict[str, float]) -> dict[str, list[float]]:
    """Single scores as a Case has them: none where there is no number."""
    return {name: [float(value)] if np.isfinite(value) else [] for name, value in scores.items()}


def write(out: str | Path, kind: str, model: str, result: dict, cases: Sequence[Case]) -> Path:
    """Writes the folder (see the file's head), and returns its page's path."""
    out = local(out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    plain = lambda scores: {name: [float(value) for value in values] for name, values in scores.items()}
    rows = [{"group": c.group, "name": c.name, "prompt": c.prompt, "scores": plain(c.scores)} for c in cases]
    kept = {"evaluation": kind, "model": model, "result": result, "cases": rows}
    shards.put(out / "index.html", page(kind, model, cases))
    shards.put(out / "result.json", json.dumps(kept, indent=1))
    return out / "index.html"


def read(folder: str | Path) -> dict:
    """What `write` put into result.json. Raises InputError where there is none."""
    path = Path(folder).expanduser() / "result.json"
    try:
        found = json.loads(path.read_text())
        found["evaluation"], found["cases"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder} holds no evaluation: `sora-jax evaluate ... --out {folder}` makes one") from None
    return found


# ------------------------------------------------------------------------------------------------ two of them


def compare(a: str | Path, b: str | Path, *, seed: int = 0) -> dict:
    """Two evaluations of one kind: {"a", "b", "scores": {score: {"a", "b", "difference", "low", "high", "cases"}}}.

    A score of a group is called "group score". low, high: the interval of the difference.
    Raises InputError: no evaluation there, of different kinds, or with no case in common.
    """
    first, second = read(a), read(b)
    kinds = first["evaluation"], second["evaluation"]
    if kinds[0] != kinds[1]:
        raise InputError(f"{a} is an evaluation of {kinds[0]}, {b} one of {kinds[1]}: only like ones compare")
    mine, theirs = ({(row["group"], row["name"]): row["scores"] for row in found["cases"]} for found in (first, second))
    both = [key for key in mine if key in theirs]
    if not both:
        raise InputError(f"{a} and {b} have no case in common: evaluate the same seeds")
    scores, rng = {}, np.random.default_rng(seed)
    for group in dict.fromkeys(group for group, _ in both):
        keys = [key for key in both if key[0] == group]
        for name in mine[keys[0]]:
            pairs = [(mine[key][name], theirs[key].get(name, [])) for key in keys]
            pairs = [pair for pair in pairs if pair[0] and pair[1]]
            if pairs:
                scores[f"{group} {name}".strip()] = difference(pairs, rng)
    return {"evaluation": kinds[0], "a": first["model"], "b": second["model"], "scores": scores}


def difference(pairs: Sequence[tuple[list[float], list[float]]], rng: np.random.Generator) -> dict[str, float]:
    """Means of A and of B over all scores of the cases, their difference, and its interval (see the file's head)."""
    sums = np.array([[sum(values) for values in pair] for pair in pairs])
    counts = np.array([[len(values) for values in pair] for pair in pairs])
    means = sums.sum(0) / counts.sum(0)
    drawn = rng.integers(len(pairs), size=(DRAWS, len(pairs)))
    again = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(again[:, 1] - again[:, 0], [(1 - INSIDE) / 2, (1 + INSIDE) / 2])
    found = {"a": means[0], "b": means[1], "difference": means[1] - means[0], "low": low, "high": high}
    return {name: round(float(value), 4) for name, value in found.items()} | {"cases": len(pairs)}


def table(found: dict) -> str:
    """The comparison for people; a star where the interval leaves out 0."""
    lines = [f"A: {found['a']}", f"B: {found['b']}", ""]
    wide = max(map(len, found["scores"])) + 2
    lines += [f"{'':{wide}}{'cases':>7}{'A':>10}{'B':>10}{'B - A':>10}     {INSIDE:.0%} of draws"]
    for name, s in found["scores"].items():
        star = "*" if s["low"] > 0 or s["high"] < 0 else " "
        inside = f"{s['low']:+.3f} .. {s['high']:+.3f}"
        cells = f"{s['cases']:>7}{s['a']:>10.3f}{s['b']:>10.3f}{s['difference']:>+10.3f} {star}"
        lines.append(f"{name:{wide}}{cells}   {inside}")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ the page


def page(kind: str, model: str, cases: Sequence[Case]) -> str:
    """All cases with their clips, by group, below the means of their scores."""
    parts = []
    for group in dict.fromkeys(case.group for case in cases):
        members = [case for case in cases if case.group == group]
        rows = []
        for name in members[0].scores:
            values = [value for case in members for value in case.scores[name]]
            mean = f"{np.mean(values):.3f}" if values else "-"
            rows.append(f"<tr><td>{name}<td class=n>{mean}<td class=n>{len(values)}")
        parts.append(f"<h2>{html.escape(group or 'all')}, {len(members)} cases</h2>")
        parts.append(f"<table><tr><th>score<th>mean<th>of{''.join(rows)}</table><p></p>")
        parts.append(f"<div class=cases>{''.join(map(_case, members))}</div>")
    title = html.escape(f"{kind}: {model}")
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"<h1>{title}</h1>{''.join(parts)}</html>\n"
    )


def _case(case: Case) -> str:
    said = ", ".join(_score(name, value) for name, values in case.scores.items() for value in values)
    clips = "".join(
        f"<figure>{_clip(clip)}<figcaption>{name}</figcaption></figure>" for name, clip in case.clips.items()
    )
    prompt = html.escape(case.prompt or case.name)
    return f"<div class=case><div class=clips>{clips}</div>{prompt}<br>{said}</div>"


def _score(name: str, value: float) -> str:
    """A yes, a no, or a number."""
    if value in (0, 1):
        return f"<span class={'yes' if value else 'no'}>{name}</span>"
    return f"{name} {value:.3g}"


def _clip(clip: Video) -> str:
    """A clip as the page holds it; a small one is shown larger, its pixels as they are."""
    data = base64.b64encode(encode(clip)).decode()
    width = clip.width * max(1, -(-SIDE // max(clip.width, clip.height)))
    if len(clip.frames) == 1:
        return f'<img width={width} src="data:image/png;base64,{data}">'
    return f'<video width={width} autoplay loop muted playsinline src="data:video/mp4;base64,{data}"></video>'
