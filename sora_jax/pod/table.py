"""A plan for people: a table, and a picture of two bars, memory and time."""

from __future__ import annotations

from pathlib import Path

from sora_jax.errors import InputError

GIB = 2**30
COLORS = ("#4c72b0", "#55a868", "#dd8452", "#c44e52", "#8172b3", "#937860", "#da8bc3")


def text(facts: dict) -> str:
    """The plan as lines."""
    step, memory, work = facts["step"], facts["memory"], facts["flops"]
    mesh = ", ".join(f"{name}={n}" for name, n in facts["mesh"].items() if n > 1) or "one device"
    slices = f" x {facts['slices']} slices" if facts["slices"] > 1 else ""
    lines = [
        f"{facts['task']} on {facts['topology']}{slices}: {facts['chips']} chips, mesh {mesh}",
        f"  {facts['parameters'] / 1e9:.3f} billion parameters, {_step(step)}",
        "",
        f"memory of a device, GiB            {'FITS' if facts['fits'] else 'DOES NOT FIT'}",
    ]
    lines += [f"  {name:<30} {size / GIB:9.2f}" for name, size in parts(memory).items()]
    total = memory["total"]
    lines += [f"  {'in all':<30} {total / GIB:9.2f}  of {memory['usable'] / GIB:.2f} usable" if total else ""]
    lines += ["", "work of a step, PFLOP, all chips"]
    if work["model"]:
        lines += [f"  {'model':<30} {work['model'] / 1e15:9.1f}"]
    lines += [f"  {'executed':<30} {work['executed'] / 1e15:9.1f}" + _ratio(work)]
    if "seconds" in facts:
        lines += _time(facts)
    return "\n".join([*lines, "", *facts["limits"]])


def _step(step: dict) -> str:
    if "row" in step:
        return f"{step['rows']} rows of {step['row']:,} patches"
    return f"{step['frames']} frames of {step['size'][0]}x{step['size'][1]}"


def _ratio(work: dict) -> str:
    if not work["model"]:
        return ""
    return f"  {work['executed_over_model']:.3f} of the model's; recomputed by remat: {work['recompute'] - 1:+.1%}"


def _time(facts: dict) -> list[str]:
    seconds, links = facts["seconds"], facts["bytes_sent"]
    names = {
        "matmul": "matrix products",
        "attention": "attention",
        "hbm": "all else, by HBM",
        "ici": "ICI",
        "dcn": "DCN",
    }
    lines = ["", "static roofline of a step, seconds"]
    lines += [f"  {title:<30} {seconds[name]:9.3f}" for name, title in names.items() if seconds[name]]
    lines += [f"  {title:<30} {seconds[name]:9.3f}" + _rates(facts, name) for name, title in BOUNDS.items()]
    sent = ", ".join(f"{n / GIB:.2f} GiB over {link.upper()}" for link, n in links.items() if n)
    lines += ["", f"a device sends in a step: {sent or 'nothing'}" + _least(facts)]
    lines += [
        f"  {row['kind']:<19} {row['axes']:<22} {row['dtype']:<5} {row['link']}  {row['bytes'] / GIB:9.3f} GiB"
        for row in facts["collectives"][:12]
    ]
    if facts["copies_of_work"] and facts["copies_of_work"] > 1.02:
        lines += [f"  the program does {facts['copies_of_work']:.2f} times the jaxpr's products: some are done twice"]
    for name, title in BOUNDS.items():
        if run := facts.get("run", {}).get(name):
            price = "" if run["usd"] is None else f", USD {run['usd']:,.0f} at list price"
            spent = f"{run['days']:.1f} days, {run['chip_hours']:,.0f} chip-hours{price}"
            lines += [f"{run['tokens']:.3g} tokens, {title}: {spent}"]
    return lines


def _least(facts: dict) -> str:
    if not facts.get("bytes_least"):
        return ""
    bound = sum(facts["bytes_least"].values())
    return (
        f"; the least for this mesh is {bound / GIB:.2f} GiB over ICI ({facts['bytes_sent']['ici'] / bound:.2f} times)"
    )


BOUNDS = {"serial": "one after the other", "overlapped": "all at once (lower bound)"}


def _rates(facts: dict, name: str) -> str:
    bound = facts["mfu_bound"]
    mfu = f"  MFU {bound[name]:.1%}," if bound else " "
    unit = "tokens" if "row" in facts["step"] else "frames"
    return f"{mfu} {facts['tokens_per_second'][name]:,.0f} {unit}/s"


def parts(memory: dict) -> dict[str, float]:
    """What the memory of a device holds, by name, in bytes."""
    held = dict(memory["held"])
    rest = {"temporaries": memory["temporaries"] or 0, "program": memory.get("program", 0)}
    rest["results"] = memory.get("results", 0)
    return {**held, **{name: size for name, size in rest.items() if size}}


def found(rows: list[dict]) -> str:
    """A search's results as lines, the longest row first, each with the flags that plan it."""
    if not rows:
        return "nothing fits: take more chips, a wider context, or shorter rows"
    lines = []
    for row in sorted(rows, key=lambda row: (-row["row"], row["recompute"])):
        mesh = ",".join(f"{name}={n}" for name, n in row["mesh"].items())
        bound = f"MFU {row['mfu_bound']['serial']:.1%}, " if row["mfu_bound"] else ""
        memory = f"{row['total'] / GIB:6.2f} of {row['usable'] / GIB:.2f} GiB"
        speed = f"{bound}{row['tokens_per_second']['serial']:,.0f} tokens/s one after the other"
        lines += [f"row {row['row']:>9,}  {memory}  {speed}"]
        lines += [f"  --mesh {mesh} --row {row['row']} --config.dit.keep={row['keep']}"]
    return "\n".join(lines)


def picture(facts: dict, path: str | Path, width: int = 900) -> None:
    """Draws the memory of a device against what is usable, and the time of a step by part."""
    from PIL import Image, ImageDraw

    time = {name: s for name, s in facts.get("seconds", {}).items() if name not in BOUNDS and s}
    memory = parts(facts["memory"])
    usable = facts["memory"]["usable"]
    bars = [("memory of a device, GiB", {n: v / GIB for n, v in memory.items()}, usable / GIB)]
    if time:
        bars.append(("seconds of a step, one after the other", time, sum(time.values())))
    margin, high, line = 16, 36, 15
    heights = [line + 6 + high + line * (len(values) + 1) + margin for _, values, _ in bars]
    image = Image.new("RGB", (width, margin + sum(heights)), "white")
    pen, top = ImageDraw.Draw(image), margin
    for (title, values, limit), height in zip(bars, heights):
        whole = max(limit, sum(values.values()))
        scale = (width - 2 * margin) / whole
        pen.text((margin, top), f"{facts['topology']}  {title}: {sum(values.values()):.2f} of {limit:.2f}", "black")
        left, y = float(margin), top + line + 6
        for i, (name, value) in enumerate(values.items()):
            color = COLORS[i % len(COLORS)]
            pen.rectangle((left, y, max(left, left + value * scale - 1), y + high), color)
            left += value * scale
            at = y + high + 6 + i * line
            pen.rectangle((margin, at + 2, margin + 10, at + 12), color)
            pen.text((margin + 18, at), f"{name}  {value:.2f}", "black")
        x = margin + limit * scale
        pen.line((x, y - 4, x, y + high + 4), "black", 2)
        top += height
    try:
        image.save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"the picture cannot be written to {path}: {error}") from None
