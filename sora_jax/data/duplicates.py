"""Which clips show what another one shows, over a whole set: near in their frames' hashes, and in their colours.

Hashes of 64 bits are compared without looking at every pair. Four bands of 16 bits: where two hashes differ in at most
seven, one band differs in at most one (the pigeonhole principle), so candidates come from sorted bands, each looked up
as it is and with every bit flipped in turn (Norouzi et al., "Fast search in Hamming space with multi-index hashing").
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int, UInt8, UInt64

from sora_jax.errors import InputError

MOST = 7  # bits, see above
BANDS, WIDE = 4, 16
AT_ONCE = 1 << 22  # candidates looked at together: tens of MB


def near(hashes: UInt64[np.ndarray, "n"], bits: int) -> Iterator[tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]]:
    """Pairs (i, j), i < j, of hashes that differ in at most `bits` bits, piece by piece; some come more than once.

    Raises InputError above seven bits.
    """
    if not 0 <= bits <= MOST:
        raise InputError(f"hashes can be compared up to {MOST} bits apart, not {bits}: set keep.bits to 0 .. {MOST}")
    flips = [0, *(1 << bit for bit in range(WIDE))]
    for band in range(BANDS):
        key = (hashes >> np.uint64(WIDE * band)).astype(np.uint16)
        order = np.argsort(key, kind="stable")
        held = key[order]
        for flip in flips:
            wanted = key ^ np.uint16(flip)
            first, last = np.searchsorted(held, wanted, "left"), np.searchsorted(held, wanted, "right")
            for part in _parts(last - first):
                count = last[part] - first[part]
                i = np.repeat(np.arange(part.start, part.stop), count)
                within = np.arange(len(i)) - np.repeat(np.cumsum(count) - count, count)
                j = order[np.repeat(first[part], count) + within]
                good = (i < j) & (np.bitwise_count(hashes[i] ^ hashes[j]) <= bits)
                yield i[good], j[good]


def _parts(counts: Int[np.ndarray, "n"]) -> Iterator[slice]:
    """Consecutive slices of which each has about AT_ONCE candidates, or is a single hash."""
    edges = np.cumsum(counts)
    at = 0
    while at < len(counts):
        done = edges[at - 1] if at else 0
        upto = max(at + 1, int(np.searchsorted(edges, done + AT_ONCE, "right")))
        yield slice(at, upto)
        at = upto


def drop(
    clips: Sequence[tuple[UInt64[np.ndarray, "k"], UInt8[np.ndarray, "k 8 8 3"], object]],
    bits: int,
    levels: float,
    share: float,
) -> dict[int, int]:
    """{a clip that can go: the one that stays and shows the same}, by position; earlier clips are preferred.

    A clip is (hashes of its moments, their colours, what shot it is of). It can go when at least `share` of its moments
    lie within `bits` bits, and `levels` grey levels of mean difference in colour, of some moment of one clip that
    stays. Clips of one shot, which follow upon each other, are never each other's duplicates.
    """
    if not clips:
        return {}
    owner = np.repeat(np.arange(len(clips)), [len(hashes) for hashes, _, _ in clips])
    hashes, colours = (np.concatenate([clip[at] for clip in clips]) for at in (0, 1))
    ids = {shot: number for number, shot in enumerate(dict.fromkeys(shot for _, _, shot in clips))}
    shots = np.array([ids[shot] for _, _, shot in clips])
    # A still clip's moments are all the same: one stands for all of them.
    _, kept, repeated = np.unique(
        np.stack([owner.astype(np.uint64), hashes], 1), axis=0, return_index=True, return_counts=True
    )
    hashes, colours, owner = hashes[kept], colours[kept].astype(np.int16), owner[kept]
    seen = []
    for i, j in near(hashes, bits):
        apart = shots[owner[i]] != shots[owner[j]]
        i, j = i[apart], j[apart]
        for part in range(0, len(i), 1 << 16):
            a, b = i[part : part + (1 << 16)], j[part : part + (1 << 16)]
            alike = np.abs(colours[a] - colours[b]).mean(axis=(1, 2, 3)) <= levels
            a, b = a[alike], b[alike]
            seen += [np.stack([a, owner[b]], 1), np.stack([b, owner[a]], 1)]  # this moment is in that clip
    if not seen:
        return {}
    moments = np.unique(np.concatenate(seen), axis=0)
    total = np.bincount(owner, repeated, len(clips))
    pairs, which = np.unique(np.stack([owner[moments[:, 0]], moments[:, 1]], 1), axis=0, return_inverse=True)
    shown = np.bincount(which.ravel(), repeated[moments[:, 0]], len(pairs)) / total[pairs[:, 0]]
    within: dict[int, list[int]] = {}
    for (clip, other), part in zip(pairs.tolist(), shown.tolist()):
        if part >= share:
            within.setdefault(clip, []).append(other)
    gone: dict[int, int] = {}
    for clip in range(len(clips)):
        stays = [other for other in sorted(within.get(clip, ())) if other < clip and other not in gone]
        if stays:
            gone[clip] = stays[0]
    return gone
