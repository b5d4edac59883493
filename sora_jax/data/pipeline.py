"""What training reads: shuffled, packed, the same in every run, resumed where it stopped, on any number of hosts.

Every clip shown has a position: e * n + i is the i-th clip of epoch e, and which one that is follows from (seed, e, i)
by `tf.random.experimental.index_shuffle`, a permutation that is computed and not stored. All that is random about a
clip (its caption, its crop, its dropped patches) is drawn from (seed, position). So a cursor is all positions:
those not yet read and those that wait in the packer; what they stand for is read again when a run goes on.

    latents    DiT batches: x, pos, seg, grid, txt, txt_seg (`packing.collate`)
    clips      VAE batches: video uint8 [b f h w 3], its shape going through data.crops in turn
    redeal     the cursors of all hosts -> those of another number of hosts

Both iterators yield (batch, cursor), the cursor being the state from which the next batch comes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from sora_jax import media
from sora_jax.data import dataset, packing, worlds
from sora_jax.errors import InputError

THREADS = 4  # that read and render ahead
BLOCK = 8  # latents that a thread reads at a time
END = 2**62  # of a range of positions that has none

Ranges = list[list[int | None]]  # positions in order, as [start, stop, step]; stop None: without end


def latents(
    source: Sequence[dict],
    data,
    *,
    tokenizer,
    patch: Sequence[int],
    seed: int,
    host: int = 0,
    hosts: int = 1,
    cursor: dict | None = None,
) -> Iterator[tuple[dict[str, np.ndarray], dict]]:
    """Packed rows of the latents in `source` (dicts of z [f h w c] and caption_*), without end, each with its cursor.

    data: row, text_row and segments (what a row holds), rows (of a step, over all hosts), open_rows and lookahead (see
    `packing.Packer`; without look-ahead rows come as they fill), drop (share of its patches that a clip leaves out),
    captions ({name: weight}: which caption_<name> it brings), text_dropout (how often it brings none), text_tokens
    (longer texts lose their end; the cursor counts them in "truncated"). tokenizer.encode(text) -> ids, end mark last.

    Raises InputError for settings that contradict each other, a cursor of other data, and a clip larger than a row.
    """
    if not len(source):
        raise InputError("the dataset of latents is empty")
    if data.rows % hosts or data.rows < 1:
        raise InputError(f"data.rows = {data.rows} rows cannot be dealt to {hosts} host(s): make it a multiple")
    if not 1 <= data.text_tokens <= data.text_row:
        raise InputError(f"data.text_tokens is {data.text_tokens}; it must be 1 to data.text_row = {data.text_row}")
    if not 0 <= data.drop < 1 or not 0 <= data.text_dropout <= 1:
        raise InputError(f"data.drop = {data.drop} and data.text_dropout = {data.text_dropout} must be shares of 1")
    if not data.captions or min(data.captions.values()) < 0 or not sum(data.captions.values()):
        raise InputError(f"data.captions is {dict(data.captions)}: give some caption a weight above 0")
    packer = packing.Packer(data.row, data.text_row, data.segments, data.open_rows, data.lookahead)
    if cursor is None:
        cursor = {"clips": len(source), "read": [[host, None, hosts]], "truncated": 0, **packer.state()}
    if cursor["clips"] != len(source):
        raise InputError(
            f"the checkpoint was trained on {cursor['clips']} clips, but the dataset has {len(source)}: "
            "go on with the dataset it was trained on, or begin anew in another workdir"
        )

    weights, dropout, drop, most = dict(data.captions), data.text_dropout, data.drop, data.text_tokens

    def load(position: int, index: int) -> tuple[packing.Clip, bool]:
        """The clip at a position, and whether its text had to be cut."""
        record, rng = source[index], generator(seed, position)
        txt = tokenizer.encode(caption(record, weights, dropout, rng))
        cut = len(txt) > most
        if cut:
            txt = [*txt[: most - 1], txt[-1]]
        grid = packing.grid_of(record["z"].shape, patch)
        clip = packing.Clip(packing.patchify(record["z"], patch), packing.positions(grid), grid, txt)
        return (packing.dropped(clip, drop, rng) if drop else clip), cut

    def batches() -> Iterator[tuple[dict[str, np.ndarray], dict]]:
        held = list(chain(*cursor["closed"], *cursor["open"]))
        indices = shuffled(held, len(source), seed).tolist()
        waiting = {position: load(position, index)[0] for position, index in zip(held, indices)}
        packer.restore(cursor, lambda position: (len(waiting[position].x), len(waiting[position].txt)))
        read, truncated = cursor["read"], cursor["truncated"]
        loaded = ahead(read, len(source), seed, load, BLOCK)
        taken = 0  # from `read`
        while True:
            while (step := packer.take(data.rows // hosts)) is None:
                position, (clip, cut) = next(loaded)
                waiting[position] = clip
                try:
                    packer.add(position, (len(clip.x), len(clip.txt)))
                except InputError as error:
                    record = source[int(shuffled(position, len(source), seed))]
                    size = "x".join(map(str, record["z"].shape[:3]))
                    name = record.get("name", "a clip")
                    raise InputError(f"{name} has {size} latents (frames x height x width): its {error}") from None
                truncated += cut
                taken += 1
            rows = [[waiting.pop(position) for position in row] for row in step]
            now = {"clips": len(source), "read": after(read, taken), "truncated": truncated, **packer.state()}
            yield packing.collate(rows, data.row, data.text_row, data.segments), now

    return batches()


def caption(record: dict, weights, dropout: float, rng: np.random.Generator) -> str:
    """One of a clip's captions, or "" for the share `dropout`; a clip without the one drawn brings another it has."""
    names = sorted(weights)
    missing = [name for name in names if weights[name] and f"caption_{name}" not in record]
    if missing:
        has = ", ".join(key.removeprefix("caption_") for key in record if key.startswith("caption_"))
        raise InputError(f"data.captions names {missing[0]!r}, but the clips have {has or 'no captions'}")
    drop, which = rng.random(2)
    if drop < dropout:
        return ""
    shares = np.cumsum([weights[name] for name in names]) / sum(weights.values())
    drawn = names[min(int(np.searchsorted(shares, which, side="right")), len(names) - 1)]
    return next((text for name in (drawn, *names) if (text := record.get(f"caption_{name}"))), "")


def clips(
    data, *, seed: int, host: int = 0, hosts: int = 1, cursor: dict | None = None
) -> Iterator[tuple[dict[str, np.ndarray], dict]]:
    """Batches of {"video": uint8 [b f h w 3]} without end, and the cursor {"step"} after each.

    data.source: "world" (each clip a scene of its own, as large as the crop), or a folder that `sora-jax data build`
    made, or any sequence of such records. data.crops: the (b, f, h, w) of the steps in turn, b over all hosts. A record
    gives a random crop; one that is too small, or damaged, leaves its place to the next in the epoch's order.

    Raises InputError for bad crops, and when no clip is large enough for one of them.
    """
    crops = [tuple(map(int, crop)) for crop in data.crops]
    bad = [crop for crop in crops if len(crop) != 4 or min(crop) < 1 or crop[0] % hosts]
    if bad or not crops:
        raise InputError(
            f"data.crops has {bad or crops}: each is (rows, frames, height, width), the rows dealt to {hosts} host(s)"
        )
    world = isinstance(data.source, str) and data.source == "world"
    source = dataset.open_clips(data.source) if isinstance(data.source, str) and not world else data.source
    n = worlds.HELD_OUT if world else len(source)
    if not n:
        raise InputError("the dataset of clips is empty")
    starts = np.cumsum([0, *(b for b, *_ in crops)])  # a crop's first position in a cycle through all crops

    def load(position: int, index: int) -> UInt8[np.ndarray, "f h w 3"]:
        _, f, h, w = crops[np.searchsorted(starts, position % starts[-1], side="right") - 1]
        if world:
            return worlds.render(worlds.sample(index, size=(w, h), frames=f))
        epoch, i = divmod(position, n)
        others = (int(shuffled(epoch * n + (i + k) % n, n, seed)) for k in range(1, n))
        for other in chain([index], others):
            record = source[other]
            if record["frames"] >= f and record["height"] >= h and record["width"] >= w:
                with suppress(InputError):  # damaged, or shorter than it says: known only once it is read
                    return crop(record, (f, h, w), generator(seed, position))
        raise InputError(
            f"none of the {n} clips is as large as the crop {f}x{h}x{w} (frames x height x width) and whole"
        )

    def batches() -> Iterator[tuple[dict[str, np.ndarray], dict]]:
        step = cursor["step"] if cursor else 0
        first = step // len(crops) * int(starts[-1]) + int(starts[step % len(crops)])
        loaded = ahead([[first + host, None, hosts]], n, seed, load, block=1)
        while True:
            b = crops[step % len(crops)][0] // hosts
            video = np.stack([frames for _, frames in islice(loaded, b)])
            step += 1
            yield {"video": video}, {"step": step}

    return batches()


def crop(record: dict, size: Sequence[int], rng: np.random.Generator) -> UInt8[np.ndarray, "f h w 3"]:
    """A random box of `size` (frames, height, width) out of a clip, of whose frames only those are held in memory.

    Raises InputError when the clip cannot be read there, or is not as large as its record says.
    """
    has = (record["frames"], record["height"], record["width"])
    f, y, x = (int(rng.integers(0, n - m + 1)) for n, m in zip(has, size))
    video = media.decode(record["media"], max_frames=size[0], start=f / record["fps"])
    box = video.frames[:, y : y + size[1], x : x + size[2]]
    if box.shape[:3] != tuple(size):
        raise InputError(f"the clip is {box.shape[:3]} where it should be {size}")
    return box


def redeal(cursors: Sequence[dict | None], hosts: int) -> list[dict | None]:
    """The cursors of all hosts of a run -> those for going on with `hosts` hosts: nothing is lost, nothing comes twice.

    With as many hosts as before the cursors stay as they are, so that the run goes on bit for bit.
    """
    if len(cursors) == hosts:
        return list(cursors)
    if cursors[0] is None:  # stopped before the first batch
        return [None] * hosts
    if "step" in cursors[0]:  # of `clips`: the same on every host
        return [cursors[0]] * hosts
    ranges = [each for cursor in cursors for each in cursor["read"]]
    # Hosts read at different speeds: what some have not read below where all have, is dealt; beyond, hosts take turns.
    common = max(start for start, stop, _ in ranges if stop is None)
    gaps = [range(start, common if stop is None else stop, step) for start, stop, step in ranges]
    dealt, count = [[] for _ in range(hosts)], 0
    for gap in filter(len, gaps):
        for host in range(hosts):
            mine = gap[(host - count) % hosts :: hosts]
            if mine:
                dealt[host].append([mine.start, mine.stop, mine.step])
        count += len(gap)
    rows = {kind: [row for cursor in cursors for row in cursor[kind]] for kind in ("open", "closed")}
    return [
        {
            "clips": cursors[0]["clips"],
            "read": [*dealt[host], [common + host, None, hosts]],
            "truncated": sum(cursor["truncated"] for cursor in cursors) if host == 0 else 0,
            "steps": max(cursor["steps"] for cursor in cursors),
            **{kind: rows[kind][host::hosts] for kind in rows},
        }
        for host in range(hosts)
    ]


def after(read: Ranges, count: int) -> Ranges:
    """The positions that are left of `read` when `count` have been taken."""
    left = []
    for start, stop, step in read:
        here = count if stop is None else min(count, len(range(start, stop, step)))
        count -= here
        start += here * step
        if stop is None or start < stop:
            left.append([start, stop, step])
    return left


def generator(seed: int, position: int) -> np.random.Generator:
    """The random numbers of the clip at a position."""
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, position], np.uint64)))


def shuffled(positions: Int[np.ndarray, "k"] | int, n: int, seed: int) -> Int[np.ndarray, "k"]:
    """The clip at each position: epoch position // n goes through 0..n-1 in an order of its own."""
    import tensorflow as tf

    return _shuffled(tf, tf.constant(positions, tf.int64), n, seed).numpy()


def _shuffled(tf, positions, n: int, seed: int):
    # The op of index_shuffle(position % n, [seed, epoch], n - 1), which puts this number before the two seeds, but for
    # several positions with their own seeds in the wrong place (TensorFlow 2.21).
    ones = tf.ones_like(positions)
    seeds = tf.stack([ones * 498247692, ones * seed, positions // n], -1)
    return tf.raw_ops.RandomIndexShuffle(index=positions % n, seed=seeds, max_index=ones * (n - 1), rounds=4)


def ahead(read: Ranges, n: int, seed: int, load: Callable, block: int) -> Iterator[tuple[int, Any]]:
    """(position, load(position, index)) for the positions of `read`, in order, computed ahead by tf.data's threads.

    A thread takes `block` positions at a time, and what it loads waits in a dict: turning clips into tensors and back,
    one at a time, costs tf.data several times what it takes to read them.
    """
    import tensorflow as tf

    done = {}

    def loaded(positions, indices):
        try:
            done[positions[0]] = [(p, load(p, i)) for p, i in zip(positions.tolist(), indices.tolist())]
        except Exception as error:  # raised below, where the caller hears of it
            done[positions[0]] = error
        return positions[0]

    def example(positions):
        indices = _shuffled(tf, positions, n, seed)
        return tf.numpy_function(loaded, [positions, indices], tf.int64, stateful=False)

    options = tf.data.Options()
    options.threading.private_threadpool_size = THREADS
    options.threading.max_intra_op_parallelism = 1
    options.deterministic = True
    parts = [tf.data.Dataset.range(start, END if stop is None else stop, step) for start, stop, step in read]
    positions = parts[0]
    for part in parts[1:]:
        positions = positions.concatenate(part)
    blocks = positions.batch(block).map(example, num_parallel_calls=THREADS).prefetch(2)
    for first in blocks.with_options(options).as_numpy_iterator():
        clips = done.pop(first)
        if isinstance(clips, Exception):
            raise clips
        yield from clips
