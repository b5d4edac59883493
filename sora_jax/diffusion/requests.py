"""What is asked for, as packed rows: canvases and prompts side by side, and whether memory holds them.

A request is a canvas and its prompt. `prepare` makes patches of it, `arrange` says which requests share a row, `pack`
lays them out: each patch with its place, its clip, its entry in the row's table of noise levels, and the text it asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from sora_jax.data.packing import patchify, positions
from sora_jax.diffusion.canvas import Canvas
from sora_jax.errors import InputError
from sora_jax.models.kernels import BLOCK

if TYPE_CHECKING:
    from sora_jax.model import Model

LEVELS = 64  # least length of a row's table of noise levels; longer tables come in powers of two
CUT = 8  # latent frames that pass between two shots with a cut between them, as far as positions tell


class Shot(NamedTuple):
    """So many pixel frames of a clip, what they show, and whether a cut parts them from the shot before."""

    frames: int
    prompt: str
    cut: bool = False


def prepare(model: Model, canvas: Canvas, prompt: str | Sequence[Shot], negative: str, seed: int, index: int) -> dict:
    """One canvas as patches: clean x, noise, start, positions, noise shift, texts and which of them a patch reads."""
    patch = model.dit.patch
    f, h, w, c = canvas.z.shape
    over = [(0, -n % p) for n, p in zip((f, h, w), patch)]  # painted on the grid above, cropped after
    z = np.pad(canvas.z, [*over, (0, 0)], mode="edge")
    start = np.pad(canvas.start, over, mode="edge")[..., None]
    grid = tuple(n // p for n, p in zip(z.shape[:3], patch))
    # numpy's Philox gives the same noise on every machine, for any size, without compiling anything
    eps = np.random.Generator(np.random.Philox([seed % 2**64, index])).standard_normal((f, h, w, c), np.float32)
    eps = np.pad(eps, [*over, (0, 0)], mode="reflect" if min(f, h, w) > 1 else "edge")
    shots = [Shot(1, prompt)] if isinstance(prompt, str) else list(prompt)
    texts = [[model.tokenizer.encode(shot.prompt) for shot in shots], [model.tokenizer.encode(negative)] * len(shots)]
    words = max(sum(map(len, side)) for side in texts)
    if (longest := max(len(text) for side in texts for text in side)) > model.config["sample"]["text_row"]:
        raise InputError(
            f"a prompt of {longest} tokens is too long for this model, which takes {model.config['sample']['text_row']}"
        )
    x, pos = patchify(z, patch), positions(grid)
    ask = np.zeros(len(x), np.int32)
    if len(shots) > 1:
        latent = pos[:, 0] * patch[0]
        frame = np.maximum(latent * model.grid[0] - model.grid[0] + 1, 0)  # the first pixel frame of each patch
        ask = np.searchsorted(np.cumsum([shot.frames for shot in shots])[:-1], frame, side="right").astype(np.int32)
        pos = pos + np.cumsum([CUT * shot.cut for shot in shots])[ask][:, None] * np.array([1, 0, 0])
    settings = model.config["flow"]  # one shift for all clips, or by their tokens
    base = 0 if "shift" in settings else settings["shift_base"]
    shift = settings["shift"] if "shift" in settings else float(np.sqrt(len(x) / base)) if base else 1.0
    given = {} if canvas.given is None else {"given": patchify(np.pad(canvas.given, [*over, (0, 0)], "edge"), patch)}
    return given | {
        "grid": grid,
        "x": x,
        "eps": patchify(eps, patch),
        "start": patchify(start, patch).max(-1),  # a patch has one noise level: its most painted latent's
        "pos": pos,
        "shift": shift,
        "texts": texts,
        "ask": ask,
        "text": words,
    }


def arrange(lengths: Sequence[int], texts: Sequence[int], row: int, text_row: int) -> list[list[int]]:
    """First fit of canvases into rows, in order: which canvases stand in which row."""
    rows: list[list[int]] = []
    for i, (length, text) in enumerate(zip(lengths, texts)):
        for members in rows:
            if sum(lengths[j] for j in members) + length <= row and sum(texts[j] for j in members) + text <= text_row:
                members.append(i)
                break
        else:
            rows.append([i])
    return rows


def pack(items: Sequence[dict], row: int, text_row: int) -> dict[str, np.ndarray]:
    """Items side by side in one row, with its table of (start, shift) and every patch's entry in it."""
    table = sorted({(float(s), item["shift"]) for item in items for s in np.unique(item["start"])})
    entry = {pair: i for i, pair in enumerate(table)}
    size = max(LEVELS, 1 << (len(table) - 1).bit_length())
    width = items[0]["x"].shape[-1]
    batch = {
        "z": np.zeros((1, row, width), np.float32),
        "eps": np.zeros((1, row, width), np.float32),
        "pos": np.zeros((1, row, 3), np.int32),
        "seg": np.zeros((1, row), np.int32),
        "ask": np.zeros((1, row), np.int32),
        "level": np.zeros((1, row), np.int32),
        "start": np.zeros((1, size), np.float32),
        "shift": np.ones((1, size), np.float32),
        "txt": np.zeros((2, text_row), np.int32),  # the prompts, then the negative prompts
        "txt_seg": np.zeros((2, text_row), np.int32),
    }
    if "given" in items[0]:
        batch["given"] = np.zeros((1, row, items[0]["given"].shape[-1]), np.float32)
    for i, pair in enumerate(table):
        batch["start"][0, i], batch["shift"][0, i] = pair
    at, text_at, asked = 0, [0, 0], 1
    for number, item in enumerate(items, 1):
        here = slice(at, at + len(item["x"]))
        batch["z"][0, here], batch["eps"][0, here], batch["pos"][0, here] = item["x"], item["eps"], item["pos"]
        batch["seg"][0, here] = number
        if "given" in item:
            batch["given"][0, here] = item["given"]
        batch["ask"][0, here] = asked + item["ask"]
        values, inverse = np.unique(item["start"], return_inverse=True)
        batch["level"][0, here] = np.array([entry[float(s), item["shift"]] for s in values], np.int32)[inverse]
        at = here.stop
        for side, texts in enumerate(item["texts"]):
            for shot, tokens in enumerate(texts):
                span = slice(text_at[side], text_at[side] + len(tokens))
                batch["txt"][side, span], batch["txt_seg"][side, span] = tokens, asked + shot
                text_at[side] = span.stop
        asked += len(item["texts"][0])
    return batch


# ------------------------------------------------------------------------------------------------ memory


def footprint(dit, row: int) -> int:
    """Bytes that a row needs at most inside a guided step: one block's activations and scores (see models.kernels)."""
    d, p = dit.width, int(np.prod(dit.patch)) * dit.channels
    values = row * (12 * d + 2 * dit.mlp + 3 * p) + 3 * dit.heads * min(row, max(BLOCK.values())) ** 2
    return 2 * 4 * values


def free_memory() -> int | None:
    """Bytes free on the devices that share a row, or on the machine when its CPU is one; None where nobody tells."""
    stats, mesh = jax.local_devices()[0].memory_stats(), jax.sharding.get_mesh()
    if stats and "bytes_limit" in stats:
        sharing = 1 if mesh.empty else mesh.shape["ring"] * mesh.shape["ulysses"]
        return sharing * (stats["bytes_limit"] - stats["bytes_in_use"])
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def check_memory(model: Model, row: int, grid: tuple[int, int, int], tokens: int) -> None:
    """Raises InputError when a row does not fit, with the largest size of the same shape and length that does."""
    free = free_memory()
    if free is None or row <= model.config["sample"]["row"] or footprint(model.dit, row) <= free:
        return
    fits = row
    while fits > 1 and footprint(model.dit, fits) > free:
        fits = int(fits * 0.95)
    _, side, _ = model.grid
    h, w = (int(n * (fits / tokens) ** 0.5) * side for n in grid[1:])
    raise InputError(
        f"a canvas of {grid[2] * side}x{grid[1] * side} and {grid[0]} latent frames has {tokens} tokens, which need "
        f"{footprint(model.dit, row) / 1e9:.1f} GB of the {free / 1e9:.1f} GB that are free: "
        f"at this length {w}x{h} is the largest that fits"
    )
