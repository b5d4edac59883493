"""Patch-n-pack: clips of any size, whole and with their text, into dense rows (NaViT, arXiv:2307.06304).

A row has `row` patches, `text_row` text tokens and at most `segments` clips. Clips stream in; each goes into the open
row that it leaves the least room in (best fit), and where none has room the fullest row is closed and a new one begun.
Closed rows wait in a look-ahead buffer, from which the rows of a step are taken so that they cost about the same:

    cost = row + attention * sum(len^2)        in the price of one patch's matrix products                          (1)

Only sizes are needed to pack, so all that a packer remembers is which clip stands where: its state is lists of numbers.
No JAX and no TensorFlow here.
"""

import colorsys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int

from sora_jax.errors import InputError

# Equation (1)'s attention: a layer of width d has 4 d len^2 FLOPs of it against 24 d^2 of matrix products a patch
# (Kaplan et al. 2020, arXiv:2001.08361, table 1): 1 / (6 d), here for d = 1536.
ATTENTION = 1 / (6 * 1536)

Size = tuple[int, int]  # of a clip: patches, text tokens


def grid_of(size: Sequence[int], patch: Sequence[int]) -> tuple[int, int, int]:
    """The (f, h, w) of a latent clip in patches; a patch that is only begun counts."""
    f, h, w = (-(-n // p) for n, p in zip(size, patch))
    return f, h, w


def patchify(z: Float[np.ndarray, "f h w c"], patch: Sequence[int]) -> Float[np.ndarray, "s p"]:
    """Latents as patches: frame slowest, then row, then column; inside a patch (pf ph pw c), c fastest.

    Where a side is no multiple of the patch, the last frame, row or column is repeated up to the grid above.
    """
    over = [(0, -n % p) for n, p in zip(z.shape, patch)]
    if any(n for _, n in over):
        z = np.pad(z, [*over, (0, 0)], mode="edge")
    pf, ph, pw = patch
    return rearrange(z, "(f pf) (h ph) (w pw) c -> (f h w) (pf ph pw c)", pf=pf, ph=ph, pw=pw)


def unpatchify(x: Float[np.ndarray, "s p"], grid: Sequence[int], patch: Sequence[int]) -> Float[np.ndarray, "f h w c"]:
    """The inverse: `unpatchify(patchify(z, patch), grid_of(z.shape, patch), patch)[:f, :h, :w] == z`, for any size."""
    (f, h, w), (pf, ph, pw) = grid, patch
    return rearrange(x, "(f h w) (pf ph pw c) -> (f pf) (h ph) (w pw) c", f=f, h=h, w=w, pf=pf, ph=ph, pw=pw)


def positions(grid: Sequence[int]) -> Int[np.ndarray, "s 3"]:
    """(frame, row, column) of every patch of a grid, frame slowest."""
    return np.indices(grid, np.int32).reshape(3, -1).T


class Clip(NamedTuple):
    """What a row takes in of a clip: patches, their positions, the size of the whole clip in patches, and its text."""

    x: Float[np.ndarray, "s p"]
    pos: Int[np.ndarray, "s 3"]
    grid: tuple[int, int, int]
    txt: Sequence[int]


def kept(count: int, drop: float) -> int:
    """How many of a clip's patches stay when the share `drop` is dropped: at least one."""
    return max(1, count - int(drop * count))


def dropped(clip: Clip, drop: float, rng: np.random.Generator) -> Clip:
    """The clip without a random share of its patches (NaViT's token dropping); the others keep order and position."""
    stay = np.sort(rng.permutation(len(clip.x))[: kept(len(clip.x), drop)])
    return clip._replace(x=clip.x[stay], pos=clip.pos[stay])


def collate(rows: Sequence[Sequence[Clip]], row: int, text_row: int, segments: int) -> dict[str, np.ndarray]:
    """Clips side by side in rows: x [b s p] float32, pos [b s 3], seg [b s], grid [b g 3], txt [b l], txt_seg [b l].

    The i-th clip of a row is segment i, counted from 1, and its size grid[i - 1]; 0 is padding everywhere.
    """
    b, p = len(rows), rows[0][0].x.shape[1]
    batch = {
        "x": np.zeros((b, row, p), np.float32),
        "pos": np.zeros((b, row, 3), np.int32),
        "seg": np.zeros((b, row), np.int32),
        "grid": np.zeros((b, segments, 3), np.int32),
        "txt": np.zeros((b, text_row), np.int32),
        "txt_seg": np.zeros((b, text_row), np.int32),
    }
    for i, clips in enumerate(rows):
        at = text_at = 0
        for number, clip in enumerate(clips, 1):
            here, there = slice(at, at + len(clip.x)), slice(text_at, text_at + len(clip.txt))
            batch["x"][i, here], batch["pos"][i, here], batch["seg"][i, here] = clip.x, clip.pos, number
            batch["txt"][i, there], batch["txt_seg"][i, there] = clip.txt, number
            batch["grid"][i, number - 1] = clip.grid
            at, text_at = here.stop, there.stop
    return batch


def lengths(seg: Int[np.ndarray, "b s"]) -> list[list[int]]:
    """How many patches each segment of each row has."""
    return [np.bincount(row)[1:].tolist() for row in seg]


def cost(lengths: Iterable[int], row: int, attention: float = ATTENTION) -> float:
    """Equation (1) for a row that holds clips of these lengths."""
    return row + attention * sum(n * n for n in lengths)


class Packer:
    """Streaming best fit over a bounded number of open rows; the clips are known by number.

    `add` a clip, then `take` the rows of a step until there is none. With `lookahead` = 0 closed rows come out in the
    order in which they were closed; else that many stay behind, and a step takes neighbours in the order of cost. Which
    neighbours depends on the step's number alone, so that hosts that never speak to each other take rows of about the
    same cost at the same time; every place in the order has its turn.
    """

    def __init__(
        self, row: int, text_row: int, segments: int, open_rows: int, lookahead: int = 0, attention: float = ATTENTION
    ):
        for name, value in (("row", row), ("text_row", text_row), ("segments", segments), ("open_rows", open_rows)):
            if value < 1:
                raise InputError(f"data.{name} is {value}; it must be at least 1")
        self.row, self.text_row, self.segments = row, text_row, segments
        self.open_rows, self.lookahead, self.attention = open_rows, lookahead, attention
        self.steps = 0  # taken so far
        self.open: list[list[int]] = []
        self.closed: list[list[int]] = []
        self.sizes: dict[int, Size] = {}  # of the clips held
        self.room = np.zeros((3, open_rows), np.int64)  # what each open row has left of patches, tokens, segments

    def add(self, clip: int, size: Size) -> None:
        """Gives a clip its place. Raises InputError when no row could hold it."""
        patches, tokens = size
        if patches > self.row:
            raise InputError(
                f"{patches} patches do not fit into a row of {self.row}: raise data.row, or drop such clips"
            )
        if tokens > self.text_row:
            raise InputError(f"{tokens} text tokens do not fit into a row of {self.text_row}: raise data.text_row")
        self.sizes[clip] = size
        count = len(self.open)
        left = self.room[0, :count] - patches
        fits = (left >= 0) & (self.room[1, :count] >= tokens)  # a row without a free segment is not open
        slot = int(np.where(fits, left, self.row).argmin()) if count else 0
        if not count or not fits[slot]:
            if count == self.open_rows:
                self._close(int(self.room[0].argmin()))
            slot = len(self.open)
            self.open.append([])
            self.room[:, slot] = self.row, self.text_row, self.segments
        self.open[slot].append(clip)
        self.room[:, slot] -= (patches, tokens, 1)
        if self.room[:, slot].min() == 0:
            self._close(slot)

    def _close(self, slot: int) -> None:
        self.closed.append(self.open[slot])
        last = self.open.pop()  # takes the empty place, so that open rows stay side by side
        if slot < len(self.open):
            self.open[slot] = last
            self.room[:, slot] = self.room[:, len(self.open)]

    def flush(self) -> None:
        """Closes every open row: there are no more clips."""
        while self.open:
            self._close(0)
        self.lookahead = 0

    def take(self, rows: int) -> list[list[int]] | None:
        """The clips of each row of the next step, or None while too few rows are closed."""
        if len(self.closed) < rows + self.lookahead:
            return None
        chosen = list(range(rows))
        if self.lookahead:
            costs = [cost((self.sizes[clip][0] for clip in row), self.row, self.attention) for row in self.closed]
            order = np.argsort(costs, kind="stable")
            stops = max(1, 4 * self.lookahead // rows)  # the windows a step may take overlap by three quarters
            start = int(turn(self.steps) * (stops + 1)) * (len(order) - rows) // stops
            chosen = sorted(order[start : start + rows].tolist())
        taken = [self.closed[i] for i in chosen]
        self.closed = [row for i, row in enumerate(self.closed) if i not in set(chosen)]
        for row in taken:
            for clip in row:
                del self.sizes[clip]
        self.steps += 1
        return taken

    def state(self) -> dict:
        """All that a packer remembers: {"steps", "open", "closed"}, the rows as lists of clips."""
        rows = {"open": self.open, "closed": self.closed}
        return {"steps": self.steps} | {name: [list(row) for row in rows[name]] for name in rows}

    def restore(self, state: dict, size_of: Callable[[int], Size]) -> None:
        """Puts a state back; `size_of(clip)` says again how large each clip is.

        Also into a packer of another shape: rows that are now too full are packed anew.
        """
        self.steps, self.open, self.closed, self.sizes = state["steps"], [], [], {}
        loose = []
        for kind, row in [("closed", row) for row in state["closed"]] + [("open", row) for row in state["open"]]:
            self.sizes |= {clip: size_of(clip) for clip in row}
            room = (self.row, self.text_row, self.segments) - np.sum([(*self.sizes[clip], 1) for clip in row], 0)
            if room.min() < 0:
                loose += row
            elif kind == "closed" or not room.all():
                self.closed.append(list(row))
            else:
                if len(self.open) == self.open_rows:  # hosts have become fewer
                    self._close(int(self.room[0].argmin()))
                self.room[:, len(self.open)] = room
                self.open.append(list(row))
        for clip in loose:
            self.add(clip, self.sizes[clip])


def turn(step: int) -> float:
    """Van der Corput's sequence (the step's bits mirrored at the point): 0, 1/2, 1/4, 3/4, ... fills [0, 1) evenly."""
    return int(f"{step:032b}"[::-1], 2) / 2**32


def report(rows: Sequence[Sequence[int]], row: int, ranks: int = 1, attention: float = ATTENTION) -> dict[str, float]:
    """How well rows (each the lengths of its clips, in the order of training) are filled, and how even their costs are.

    padding: the share of it among the patches; clips: per row; balance: mean/max cost over the ranks, each of which
    takes one row of a step, as a mean over steps: 1 is perfect.
    """
    costs = np.array([cost(clips, row, attention) for clips in rows])
    steps = costs[: len(costs) // ranks * ranks].reshape(-1, ranks)
    fill = sum(map(sum, rows)) / (row * len(rows))
    return {
        "fill": fill,
        "padding": 1 - fill,
        "clips": sum(map(len, rows)) / len(rows),
        "balance": float((steps.mean(1) / steps.max(1)).mean()) if len(steps) else float("nan"),
    }


def draw(batch: dict[str, np.ndarray], path: str | Path, width: int = 1600) -> None:
    """A picture of packed rows: each clip a run of one colour with its size in patches (frames x rows x columns), its
    text the thin run of the same colour below; padding is grey. The format follows the suffix of `path`."""
    from PIL import Image, ImageDraw

    high, thin, gap, margin = 28, 8, 10, 8
    b = len(batch["seg"])
    image = Image.new("RGB", (width + 2 * margin, b * (high + thin + gap) + 2 * margin - gap), "white")
    pen = ImageDraw.Draw(image)
    for i in range(b):
        top = margin + i * (high + thin + gap)
        for name, y0, y1 in (("seg", top, top + high), ("txt_seg", top + high + 1, top + high + thin)):
            row = batch[name][i]
            pen.rectangle((margin, y0, margin + width - 1, y1 - 1), "#dddddd")
            for number in range(1, row.max(initial=0) + 1):
                here = np.flatnonzero(row == number)
                x0, x1 = (margin + int(n * width / len(row)) for n in (here[0], here[-1] + 1))
                # the golden ratio keeps neighbours apart, and rows from looking alike
                color = colorsys.hsv_to_rgb((0.618034 * (number + 7 * i)) % 1, 0.45, 0.95)
                pen.rectangle((x0, y0, max(x0, x1 - 2), y1 - 1), tuple(round(255 * v) for v in color))
                label = "x".join(map(str, batch["grid"][i, number - 1]))
                if name == "seg" and pen.textlength(label) + 4 <= x1 - x0:
                    pen.text(((x0 + x1) / 2, (y0 + y1) / 2), label, "black", anchor="mm")
    image.save(path)
