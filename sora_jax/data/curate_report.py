"""What curation kept and dropped, and why, as one HTML page that needs nothing outside it.

The same shots and thresholds give the same bytes. Of a large set the page shows some of each kind, evenly spread.
"""

import base64
import html
import math
from collections import Counter

import numpy as np

from sora_jax.data import scores, shots

KEPT, DROPPED = 120, 24  # strips shown at most: of what was kept, and for each reason
BINS, WIDE, HIGH = 40, 320, 96  # a histogram's bins and pixels
SEEN = 2  # pixels of a bar, at least: one shot among hundreds is seen
GREEN, RED, GREY = "#3a9b78", "#cf6f4a", "#888"
LEAST = ("seconds", "side", "change")  # a shot is dropped below these thresholds, and above the others
UNITS = {
    "seconds": "s",
    "side": "pixels, shorter side",
    "change": "% of pixels a moment",
    "motion": "% of the diagonal a second",
    "shake": "% of the diagonal a second",
    "blur": "0 sharp, 1 blurred",
    "dark": "% of pixels",
    "bright": "% of pixels",
    "text": "% of the picture",
}

STYLE = """
:root{color-scheme:light dark;--ink:#1c1c1c;--pale:#6b6b6b;--line:#ddd;--paper:#fff}
@media (prefers-color-scheme:dark){:root{--ink:#eee;--pale:#a0a0a0;--line:#3a3a3a;--paper:#161616}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0 auto;max-width:1240px;
padding:24px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:36px 0 8px;border-top:1px solid var(--line);padding-top:16px}
p{margin:4px 0 12px}.pale,figcaption span{color:var(--pale)}table{border-collapse:collapse}
td,th{padding:3px 18px 3px 0;text-align:left;border-bottom:1px solid var(--line)}td.n{text-align:right}
.grid,.charts{display:flex;flex-wrap:wrap;gap:16px}
figure{margin:0;width:402px;font-size:12px;overflow-wrap:anywhere}
figcaption{padding:3px 0}
figure img{max-width:100%;max-height:96px;display:block;border-radius:3px;background:var(--line)}
.charts div{width:386px}b.kept{color:#3a9b78}b.lost{color:#cf6f4a}
"""


def page(rows: list[dict], why: list[list[str]], keep: dict, skipped: list[dict]) -> str:
    """The page. rows: shots as `curate.open_shots` gives them; why: the reasons against each, [] for those kept; keep:
    the thresholds; skipped: {"file", "reason"} of files that could not be read."""
    good = [row for row, said in zip(rows, why) if not said]
    named = {shots.name(row): row for row in rows}
    groups: dict[str, list[tuple[dict, list[str]]]] = {}
    for row, said in zip(rows, why):
        if said:
            groups.setdefault(said[0].split(" of ")[0], []).append((row, said))
    parts = [
        f"<h1>{len(good):,} of {len(rows):,} shots kept</h1>",
        f"<p class=pale>{_time(good)} of {_time(rows)}, from {len({row['file'] for row in rows}):,} files"
        f"{f'; {len(skipped):,} more could not be read' if skipped else ''}</p>",
        _table(groups, why),
        "<h2>Scores and thresholds</h2><p class=pale>Each bar: shots with such a score, <b class=kept>kept</b> below, "
        "<b class=lost>dropped</b> for any reason on top; how many the highest stands for is at its left. Dashed: the "
        "threshold. Black shots are left out.</p>",
        f"<div class=charts>{''.join(_chart(key, rows, why, keep) for key in UNITS)}</div>",
        f"<h2>Kept <span class=pale>{len(good):,}</span></h2>{_grid([(row, []) for row in good], KEPT, named)}",
        *(
            f"<h2>Dropped: {_safe(reason)} <span class=pale>{len(some):,}</span></h2>{_grid(some, DROPPED, named)}"
            for reason, some in sorted(groups.items(), key=lambda group: -len(group[1]))
        ),
    ]
    if skipped:
        lines = "".join(f"<tr><td>{_safe(bad['file'])}<td>{_safe(bad['reason'])}" for bad in skipped[:1000])
        parts.append(f"<h2>Not read <span class=pale>{len(skipped):,}</span></h2><table>{lines}</table>")
    head = '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
    return (
        f"{head}<title>Curation: {len(good):,} of {len(rows):,} shots</title><style>{STYLE}</style>{''.join(parts)}\n"
    )


def value(row: dict, key: str) -> float:
    """A shot's score by the name of its threshold."""
    if key == "seconds":
        return row["frames"] / row["fps"] if row["kind"] == "video" else math.nan
    return float(min(row["crop"][2:])) if key == "side" else float(row[key])


def _safe(said) -> str:
    return html.escape(str(said))


def _time(rows: list[dict]) -> str:
    seconds = sum(row["frames"] / row["fps"] for row in rows if row["kind"] == "video")
    images = sum(row["kind"] == "image" for row in rows)
    clock = f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02}:{int(seconds % 60):02}"
    return clock + (f" and {images:,} images" if images else "")


def _table(groups: dict, why: list[list[str]]) -> str:
    """Each reason: shots it was the first reason of, shots it speaks against at all."""
    at_all = Counter(reason.split(" of ")[0] for said in why for reason in said)
    rows = [
        f"<tr><td>{_safe(reason)}<td class=n>{len(some):,}<td class=n>{at_all[reason]:,}<td class=n>"
        f"{_time([row for row, _ in some])}"
        for reason, some in sorted(groups.items(), key=lambda group: -len(group[1]))
    ]
    head = "<tr><th>dropped for<th>shots<th>shots with this fault<th>time"
    return f"<table>{head}{''.join(rows)}</table>" if rows else "<p>Nothing was dropped.</p>"


def _grid(some: list[tuple[dict, list[str]]], most: int, named: dict[str, dict]) -> str:
    chosen = [some[n] for n in np.linspace(0, len(some) - 1, min(most, len(some))).round().astype(int)]
    more = f"<p class=pale>{most} of them, evenly spread; all are in the .jsonl files.</p>" if len(some) > most else ""
    return f"{more}<div class=grid>{''.join(_figure(row, said, named) for row, said in chosen)}</div>"


def _strip(row: dict) -> str:
    return f'<img loading=lazy alt="" src="data:image/jpeg;base64,{base64.b64encode(row["strip"]).decode()}">'


def _when(row: dict) -> str:
    start, seconds = row["first"] / row["fps"], row["frames"] / row["fps"]
    return f"{int(start // 60)}:{start % 60:05.2f} + {seconds:.2f} s, " if row["kind"] == "video" else ""


def _figure(row: dict, said: list[str], named: dict[str, dict]) -> str:
    """A shot's strip and what is known of it; under a duplicate the one that stays."""
    crop = "" if row["crop"][2:] == [row["width"], row["height"]] else f" of {row['width']}x{row['height']}"
    seen = " ".join(f"{key}&nbsp;{round(float(row[key]), 2):g}" for key in scores.NAMES if not math.isnan(row[key]))
    against = f"<br><b>{_safe(', '.join(said))}</b>" if said else ""
    text = f"<br>{_safe(row['captions'][0])}" if row["captions"] else ""
    stays = "".join(
        f"{_strip(named[other])}<figcaption><span>{_when(named[other])}this one stays</span></figcaption>"
        for other in (reason.removeprefix("duplicate of ") for reason in said if reason.startswith("duplicate of "))
    )
    return (
        f"<figure>{_strip(row)}<figcaption>{_safe(row['file'])} <span>{_when(row)}{row['crop'][2]}x{row['crop'][3]}"
        f"{crop}<br>{seen}</span>{against}{text}</figcaption>{stays}</figure>"
    )


def _chart(key: str, rows: list[dict], why: list[list[str]], keep: dict) -> str:
    """A histogram as SVG; the rightmost bar holds everything beyond."""
    seen = [(value(row, key), not said) for row, said in zip(rows, why) if not row["black"]]
    seen = [(number, good) for number, good in seen if not math.isnan(number)]
    limit = float(keep[key])
    if not seen:
        return f"<div><b>{key}</b> <span class=pale>{UNITS[key]}</span><p class=pale>not measured</p></div>"
    numbers, good = np.array([n for n, _ in seen]), np.array([g for _, g in seen])
    top = max(float(np.quantile(numbers, 0.98)), 1.15 * limit if limit < 1e6 else 0.0, 1e-6)
    bins = np.minimum((numbers / top * BINS).astype(int), BINS - 1)
    kept, lost = np.bincount(bins[good], minlength=BINS), np.bincount(bins[~good], minlength=BINS)
    tall, step = max(1, int((kept + lost).max())), WIDE / BINS
    bars = []
    for n, pair in enumerate(zip(kept, lost)):
        a, b = (max(SEEN, count * (HIGH - 2 * SEEN) / tall) if count else 0.0 for count in pair)
        for height, under, colour in ((a, 0.0, GREEN), (b, a, RED)):
            if height:
                box = f'x="{n * step:.1f}" y="{HIGH - under - height:.1f}" width="{step - 1:.1f}" height="{height:.1f}"'
                bars.append(f'<rect {box} fill="{colour}"/>')
    if limit <= top:
        x = f"{limit / top * WIDE:.1f}"
        bars.append(f'<line x1="{x}" x2="{x}" y1="0" y2="{HIGH}" stroke="{GREY}" stroke-dasharray="3 3"/>')
    font = f'y="{HIGH + 13}" font-size="11" fill="{GREY}"'
    most = f'<text x="-4" y="8" font-size="11" fill="{GREY}" text-anchor="end">{tall:,}</text>'
    ends = f'{most}<text x="0" {font}>0</text><text x="{WIDE}" {font} text-anchor="end">{top:.3g}+</text>'
    side = "at least" if key in LEAST else "at most"
    return (
        f"<div><b>{key}</b> <span class=pale>{UNITS[key]}; {side} {limit:g}</span>"
        f'<svg viewBox="-32 -4 {WIDE + 32} {HIGH + 20}" width="100%">{"".join(bars)}{ends}</svg></div>'
    )
