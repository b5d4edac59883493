"""What a table of names is: one a family of checkpoints, read as data.

A row says where one of our parameters is found in other people's files:

    ours       its path in our tree, such as "blocks/self/q/kernel"
    layout     how their tensor becomes ours: a key of LAYOUTS
    original   its name in the layout its authors published; {i} is the block's number, and ours is the stack of them
    diffusers  its name in diffusers' and transformers' layout

A family is a module with

    MARKS              {"original": name, "diffusers": name}: a name that only this family, so laid out, has
    ALIASES            {name: name}: a second name of the same tensor, for files that hold it twice or under the other
    fields(shapes, config) -> dict   our module's config from shapes by their names, as the original or diffusers' has
                       them, and from the config.json beside them, if any
    names(fields)      -> list[Name]: the table
    shapes(fields, found)     -> the tree of our parameters' shapes, computing nothing
    published(fields, found)  -> the config.json that diffusers or transformers reads
    CONSTANTS          our parameters that no tensor of theirs holds, but their config may; where there are some,
    constants(fields, config) -> {ours: array}, and `published` takes them too, by their names

where `found` are the shapes of our parameters as the files have them, for what the fields do not say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from einops import rearrange

PATCH = dict(f=1, h=2, w=2)  # of every DiT of the family: its (frames, rows, columns)


class Name(NamedTuple):
    """A row of a table; see the file's head."""

    ours: str
    layout: str
    original: str
    diffusers: str


class Layout(NamedTuple):
    """Their tensor to ours, and back. Both are views or copies that change no bit."""

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


LAYOUTS = {
    "same": Layout(lambda x: x, lambda x: x),
    # one more dimension in front: (1, 6, d) is our (6, d)
    "first": Layout(lambda x: x[0], lambda x: x[None]),
    # (out, in) is our (in, out)
    "linear": Layout(lambda x: x.T, lambda x: x.T),
    "conv3d": Layout(
        lambda x: rearrange(x, "o i f h w -> f h w i o"), lambda x: rearrange(x, "f h w i o -> o i f h w")
    ),
    # of frames: a convolution in space alone, a product with each pixel's channels, a norm's gains
    "frame": Layout(lambda x: rearrange(x, "o i h w -> 1 h w i o"), lambda x: rearrange(x, "1 h w i o -> o i h w")),
    "pixel": Layout(lambda x: rearrange(x, "o i 1 1 -> i o"), lambda x: rearrange(x, "i o -> o i 1 1")),
    "gain2d": Layout(lambda x: rearrange(x, "c 1 1 -> c"), lambda x: rearrange(x, "c -> c 1 1")),
    "gain3d": Layout(lambda x: rearrange(x, "c 1 1 1 -> c"), lambda x: rearrange(x, "c -> c 1 1 1")),
    # a convolution as wide as its stride is a product with patches, in which channels are fastest
    "patch": Layout(
        lambda x: rearrange(x, "o c f h w -> (f h w c) o"),
        lambda x: rearrange(x, "(f h w c) o -> o c f h w", **PATCH),
    ),
}  # fmt: skip


class Place(NamedTuple):
    """Where one of their tensors goes: our path, the block's number in its stack (None: no stack), and the layout."""

    ours: str
    index: int | None
    layout: Layout


def places(table: Sequence[Name], dialect: str, depth: int) -> dict[str, Place]:
    """{their name: Place} for every tensor of a checkpoint laid out in a dialect, stacks of `depth` blocks unrolled."""
    found = {}
    for row in table:
        name = getattr(row, dialect)
        for i in range(depth) if "{i}" in name else (None,):
            found[name if i is None else name.format(i=i)] = Place(row.ours, i, LAYOUTS[row.layout])
    return found


def blocks(shapes: Sequence[str], name: str) -> int:
    """How many blocks there are: the first number for which `name` with {i} is missing."""
    count = 0
    while name.format(i=count) in shapes:
        count += 1
    return count
