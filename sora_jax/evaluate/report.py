"""A run's own story: its workdir as one HTML page that needs nothing beside it.

What it says is what the run wrote (see train/loop.py): config.json, metrics.jsonl, samples/ and checkpoints/. It may be
read while the run goes on.
"""

import base64
import html
import io
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

from etils import epath
from PIL import Image

from sora_jax.errors import InputError

# Title, the metrics' names, and whether the axis is logarithmic. A figure nobody wrote metrics for is left out, and a
# metric that no figure claims goes to the last.
FIGURES = (
    ("loss, and held out", r"loss|eval/loss", True),
    ("held-out loss by noise level", r"eval/loss_at_.*", True),
    ("by what share text lowers the held-out loss", r"eval/text_helps", False),
    ("loss by noise level, quarters from clean (t0) to noise (t3)", r"loss_t\d", True),
    ("loss by kind of clip", r"loss_(image|short_video|long_video)", True),
    ("PSNR, dB", r"(eval/)?psnr\w*", False),
    ("learning rate", r"lr", False),
    ("gradient norm", r"grad_norm", True),
    ("tokens a second", r"tokens_per_second", False),
    ("goodput and fill, shares of 1", r"goodput|fill", False),
    ("skipped steps", r"skipped", False),
    ("others", r"(?!flops_per_second|seconds_per_step).*", False),
)
SHEETS, SHEET_WIDTH = 6, 720  # contact sheets on the page, from the first to the last, and their width in pixels

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.figures, .sheets { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0 } figcaption { font-weight: 600 }
table { border-collapse: collapse } td { padding: .1rem .8rem .1rem 0; vertical-align: top } td + td { color: #444 }
code { background: #f3f3f3 } svg, img { max-width: 100%; height: auto }
"""


def write(workdir: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page, to WORKDIR/report.html unless told otherwise, and returns its path.

    Raises InputError where the folder is no workdir, or has no metrics yet.
    """
    workdir = epath.Path(workdir)  # also in a bucket
    if not (workdir / "config.json").is_file():
        raise InputError(f"{workdir} is not the working folder of a run: there is no config.json in it")
    lines = metrics(workdir / "metrics.jsonl")
    if not lines:
        raise InputError(f"{workdir} has no metrics yet: let it train for longer")
    config = flat(json.loads((workdir / "config.json").read_text()))
    out = epath.Path(out) if out else workdir / "report.html"
    out.write_text(page(workdir.name, config, lines, sheets(workdir / "samples"), saved(workdir / "checkpoints")))
    return out


def metrics(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl; the last may be half written and is then left out."""
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def flat(tree: dict, prefix: str = "") -> dict:
    """{"dit.width": 192, ...} of a nested config."""
    out = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return out


def sheets(folder: Path) -> list[Path]:
    """At most SHEETS of the contact sheets (of a model of text alone: of its texts), evenly from first to last."""
    found = sorted([*folder.glob("*.png"), *folder.glob("*.txt")]) if folder.is_dir() else []
    if len(found) <= SHEETS:
        return found
    return [found[round(i * (len(found) - 1) / (SHEETS - 1))] for i in range(SHEETS)]


def saved(folder: Path) -> list[tuple[int, float, float]]:
    """(step, gigabytes, when in seconds since 1970) of the complete checkpoints."""
    found = (
        sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name)) if folder.is_dir() else []
    )
    return [(int(p.name), size(p) / 1e9, p.stat().mtime) for p in found]


def size(path: epath.Path) -> int:
    """Bytes of a file, or of all in a folder."""
    return sum(map(size, path.iterdir())) if path.is_dir() else path.stat().length


def series(lines: Sequence[dict], name: str) -> tuple[list[int], list[float]]:
    """The steps at which a metric was written and was finite, and its values there."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def figures(lines: Sequence[dict]) -> list[tuple[str, str]]:
    """(title, SVG) of every figure that has something to show."""
    left = sorted({name for line in lines for name in line} - {"step"})
    drawn = []
    for title, pattern, log in FIGURES:
        names = [name for name in left if re.fullmatch(pattern, name) and series(lines, name)[0]]
        left = [name for name in left if name not in names]
        if names:
            drawn.append((title, curves(lines, names, log)))
    return drawn


def curves(lines: Sequence[dict], names: Sequence[str], log: bool) -> str:
    """Metrics over steps as an SVG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(5.6, 3.0), layout="constrained")
    axes = figure.subplots()
    for name in names:
        steps, values = series(lines, name)
        axes.plot(steps, values, label=name, linewidth=1.2, marker="." if len(steps) < 30 else None)
    if log and min(min(series(lines, name)[1]) for name in names) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    if len(names) > 1:
        axes.legend(fontsize=8)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def sample(path: Path) -> str:
    """What a sample file shows: its text, or its picture as a data URL, no wider than SHEET_WIDTH."""
    if path.suffix == ".txt":
        return f"<pre>{html.escape(path.read_text())}</pre>"
    picture = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    if picture.width > SHEET_WIDTH:
        picture = picture.resize((SHEET_WIDTH, round(picture.height * SHEET_WIDTH / picture.width)))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/webp;base64,{data}" alt="samples at {html.escape(path.stem)}">'


def page(name: str, config: dict, lines: list[dict], pictures: list[Path], checkpoints: list[tuple]) -> str:
    trained = [line for line in lines if "loss" in line]
    last, judged = (trained or lines)[-1], [line for line in lines if "eval/loss" in line]
    facts = [f"step {last['step']:,} of {config['steps']:,}"]
    facts += [f"loss {last['loss']:.4f}"] if last.get("loss") is not None else []
    facts += [f"held out {judged[-1]['eval/loss']:.4f} at step {judged[-1]['step']:,}"] if judged else []
    facts += [f"{last['skipped']} steps skipped"] if last.get("skipped") is not None else []
    if last.get("seconds_per_step") is not None:
        facts += [f"{last['seconds_per_step']:.2f} s a step, {last['tokens_per_second']:,.0f} tokens/s"]
        facts += [f"{last['flops_per_second'] / 1e9:,.0f} GFLOP/s of the model's"]
        facts += [f"goodput {last['goodput']:.2f}"]
    drawn = "\n".join(f"<figure><figcaption>{title}</figcaption>{svg}</figure>" for title, svg in figures(lines))
    painted = "\n".join(
        f"<figure><figcaption>{html.escape(path.stem.lstrip('0') or '0')}</figcaption>{sample(path)}</figure>"
        for path in pictures
    )
    settings = rows(
        (f"<code>{html.escape(key)}</code>", html.escape(json.dumps(value))) for key, value in config.items()
    )
    kept = rows(
        (f"{step:,}", f"{size:.2f} GB, {time.strftime('%F %T', time.gmtime(at))} UTC") for step, size, at in checkpoints
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(name)}</title><style>{STYLE}</style>
<h1>{html.escape(name)}: {html.escape(str(config["task"]))}</h1>
<p>{" · ".join(facts)}</p>
<h2>Curves</h2>
<div class="figures">{drawn}</div>
<h2>Samples through time</h2>
<div class="sheets">{painted or "<p>None painted yet.</p>"}</div>
<h2>Checkpoints</h2>
<table>{kept or "<tr><td>none yet</td></tr>"}</table>
<h2>Config</h2>
<table>{settings}</table>
</html>
"""


def rows(pairs) -> str:
    return "\n".join(f"<tr><td>{left}</td><td>{right}</td></tr>" for left, right in pairs)
