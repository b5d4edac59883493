"""Laws of the pipeline: each clip once an epoch, resumed == never stopped, any number of hosts shares the work."""

import json
import subprocess
import sys
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

from sora_jax import media
from sora_jax.data import packing, pipeline, worlds
from sora_jax.errors import InputError

PATCH, N = (1, 2, 2), 23


class Letters:
    """A tokenizer of letters; 1 ends a text."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text] + [1]


def records() -> list[dict]:
    """Clip i has i in every latent, and in its captions."""
    rng = np.random.default_rng(0)
    return [
        {
            "z": np.full((rng.choice((1, 1, 3)), *rng.integers(1, 7, 2), 4), i, np.float32),
            "caption_short": f"s{i}",
            "caption_long": f"long{i}",
            "name": f"clip-{i}",
        }
        for i in range(N)
    ]


def data(**changes) -> SimpleNamespace:
    settings = {"row": 32, "rows": 2, "text_row": 40, "segments": 6, "text_tokens": 8, "open_rows": 4, "lookahead": 4}
    settings |= {"drop": 0.0, "captions": {"short": 0.5, "long": 0.5}, "text_dropout": 0.2}
    return SimpleNamespace(**settings | changes)


def stream(cursor=None, host=0, hosts=1, seed=3, **changes):
    return pipeline.latents(
        records(), data(**changes), tokenizer=Letters(), patch=PATCH, seed=seed, host=host, hosts=hosts, cursor=cursor
    )


def run(count: int, **kwargs) -> tuple[list[dict], dict]:
    found = list(islice(stream(**kwargs), count))
    return [batch for batch, _ in found], found[-1][1]


def shown(batches) -> Counter:
    """How often each clip came."""
    found = Counter()
    for batch in batches:
        for x, seg in zip(batch["x"], batch["seg"]):
            found.update(int(x[seg == number][0, 0]) for number in range(1, seg.max() + 1))
    return found


def waiting(cursor) -> Counter:
    """The clips that wait in a packer."""
    return clips_at([p for row in cursor["open"] + cursor["closed"] for p in row])


def clips_at(positions) -> Counter:
    return Counter(pipeline.shuffled(positions, N, 3).tolist())


def same(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


@pytest.fixture(scope="module")
def whole():
    """Thirty steps, never stopped, and the cursor after each."""
    found = list(islice(stream(), 30))
    return [batch for batch, _ in found], [cursor for _, cursor in found]


def test_the_order_is_a_permutation_of_each_epoch():
    epochs = pipeline.shuffled(np.arange(3 * N), N, 3).reshape(3, N).tolist()
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    import tensorflow as tf

    shuffle = lambda i, epoch: tf.random.experimental.index_shuffle(i, [3, epoch], N - 1)
    assert [int(shuffle(i, 1)) for i in range(5)] == epochs[1][:5]
    assert [int(pipeline.shuffled(N + i, N, 3)) for i in range(5)] == epochs[1][:5]


def test_every_clip_comes_once_an_epoch(whole):
    batches, cursors = whole
    taken = cursors[-1]["read"][0][0]
    assert taken > 3 * N
    assert shown(batches) + waiting(cursors[-1]) == clips_at(range(taken))


def test_a_row_holds_whole_clips_and_their_text(whole):
    source, texts = records(), Counter()
    for batch in whole[0]:
        for r, number in zip(*np.nonzero(batch["grid"][:, :, 0])):
            here, grid = batch["seg"][r] == number + 1, batch["grid"][r, number]
            z = packing.unpatchify(batch["x"][r, here], grid, PATCH)
            i = int(z.flat[0])
            f, h, w, _ = source[i]["z"].shape
            np.testing.assert_array_equal(z[:f, :h, :w], source[i]["z"])
            np.testing.assert_array_equal(batch["pos"][r, here], packing.positions(grid))
            text = "".join(map(chr, batch["txt"][r, batch["txt_seg"][r] == number + 1]))
            assert text in (f"s{i}\1", f"long{i}\1", "\1")
            texts[text[0]] += 1
        assert not batch["x"][batch["seg"] == 0].any() and not batch["txt"][batch["txt_seg"] == 0].any()
    total = texts.total()
    assert abs(texts["\1"] / total - 0.2) < 0.1 and abs(texts["s"] / total - 0.4) < 0.12


@pytest.mark.parametrize("stop", [1, 7, 16])
def test_resumed_is_never_stopped(whole, stop):
    batches, cursors = whole
    again, cursor = run(30 - stop, cursor=json.loads(json.dumps(cursors[stop - 1])))
    same(again, batches[stop:])
    assert cursor == cursors[-1]
    assert len(json.dumps(cursor)) < 400


def test_also_in_a_fresh_process(whole, tmp_path):
    batches, cursors = whole
    (tmp_path / "cursor.json").write_text(json.dumps(cursors[4]))
    code = (
        "import json, sys, numpy as np; from tests import test_pipeline as t\n"
        "batches, cursor = t.run(9, cursor=json.load(open(sys.argv[1] + '/cursor.json')))\n"
        "np.savez(sys.argv[1] + '/batches', *(b[k] for b in batches for k in sorted(b))); print(json.dumps(cursor))"
    )
    out = subprocess.run([sys.executable, "-c", code, tmp_path], check=True, capture_output=True, text=True).stdout
    assert json.loads(out) == cursors[13]
    found = np.load(tmp_path / "batches.npz")
    for i, array in enumerate(batch[key] for batch in batches[5:14] for key in sorted(batch)):
        np.testing.assert_array_equal(found[f"arr_{i}"], array)


def test_same_seed_same_batches_and_another_seed_others(whole):
    same(run(5)[0], whole[0][:5])
    assert not all(np.array_equal(a["x"], b["x"]) for a, b in zip(run(5, seed=4)[0], whole[0]))


@pytest.mark.parametrize("after", [1, 3])
def test_hosts_share_the_clips_and_redealing_loses_none(after):
    """Two hosts, then three, then one: all clips of all epochs come as often as the epochs begun ask for."""
    found, cursors = [], [None, None]
    for hosts, steps in ((2, 9), (3, after), (1, 6)):
        cursors = [None] * 2 if cursors[0] is None else json.loads(json.dumps(pipeline.redeal(cursors, hosts)))
        for host in range(hosts):
            batches, cursors[host] = run(steps, rows=6, host=host, hosts=hosts, cursor=cursors[host])
            assert batches[0]["x"].shape[0] == 6 // hosts
            found += batches
    ((start, stop, step),) = cursors[0]["read"]
    assert stop is None and step == 1
    assert shown(found) + waiting(cursors[0]) == clips_at(range(start)) and cursors[0]["steps"] == 9 + after + 6


def test_redealing_to_as_many_hosts_changes_nothing(whole):
    assert pipeline.redeal([whole[1][3]], 1) == [whole[1][3]]
    assert pipeline.redeal([{"step": 4}] * 2, 3) == [{"step": 4}] * 3
    assert pipeline.redeal([None] * 2, 3) == [None] * 3  # stopped before the first batch


@pytest.mark.parametrize("hosts", [1, 2, 3, 7])
def test_redealing_deals_every_position_once(hosts):
    """Five hosts at different places, some with a gap from an earlier deal."""
    rest = {"clips": N, "truncated": 1, "steps": 4, "closed": []}
    cursors = [{"read": [[40 + 5 * k + h, None, 5]], "open": [[h]], **rest} for h, k in enumerate((0, 3, 1, 7, 2))]
    cursors[2]["read"].insert(0, [20, 30, 3])
    todo = lambda cursors: Counter(
        p for c in cursors for start, stop, step in c["read"] for p in range(start, 200 if stop is None else stop, step)
    )
    dealt = pipeline.redeal(cursors, hosts)
    assert len(dealt) == hosts and todo(dealt) == todo(cursors) and max(todo(dealt).values()) == 1
    assert sorted(row for c in dealt for row in c["open"]) == [[h] for h in range(5)]
    assert sum(c["truncated"] for c in dealt) == 5
    counts = [len(c["read"]) and sum(len(range(a, b, s)) for a, b, s in c["read"] if b is not None) for c in dealt]
    assert max(counts) - min(counts) <= 1


def test_what_is_left_after_some_are_taken():
    read = [[0, 5, 2], [7, 8, 1], [10, None, 3]]
    every = lambda read: [p for a, b, s in read for p in range(a, 40 if b is None else b, s)]
    for count in range(8):
        assert every(pipeline.after(read, count)) == every(read)[count:]


def test_dropped_patches_and_cut_texts(whole):
    batches, cursor = run(8, drop=0.5, text_tokens=3)
    for batch in batches:
        for r, number in zip(*np.nonzero(batch["grid"][:, :, 0])):
            here, grid = batch["seg"][r] == number + 1, batch["grid"][r, number]
            assert here.sum() == packing.kept(int(grid.prod()), 0.5)
            assert (batch["pos"][r, here] < grid).all()
            txt = batch["txt"][r, batch["txt_seg"][r] == number + 1]
            assert len(txt) <= 3 and txt[-1] == 1
    assert cursor["truncated"] > 0 and whole[1][-1]["truncated"] == 0
    first, middle = run(3, drop=0.5, text_tokens=3)
    again, last = run(5, drop=0.5, text_tokens=3, cursor=middle)
    same(first + again, batches)
    assert last == cursor


def test_captions_are_drawn_as_often_as_their_weights_say():
    record = {"caption_short": "s", "caption_long": "l", "caption_original": "o"}
    weights = {"short": 0.2, "long": 0.75, "original": 0.05}
    drawn = Counter(pipeline.caption(record, weights, 0.1, pipeline.generator(0, i)) for i in range(4000))
    shares = {name: drawn[text] / 3600 for name, text in (("short", "s"), ("long", "l"), ("original", "o"))}
    assert shares == pytest.approx(weights, abs=0.03) and drawn[""] == pytest.approx(400, abs=60)
    without = record | {"caption_original": ""}
    assert {pipeline.caption(without, {"original": 1.0, "long": 0.0}, 0.0, pipeline.generator(0, 1))} == {"l"}


def test_mistakes_are_one_sentence(whole):
    with pytest.raises(InputError, match=r"clip-.* has .* latents .* patches do not fit into a row of 20"):
        run(20, row=20)
    with pytest.raises(InputError, match="trained on 24 clips, but the dataset has 23"):
        stream(cursor=whole[1][0] | {"clips": 24})
    with pytest.raises(InputError, match="names 'medium', but the clips have short, long"):
        run(1, captions={"medium": 1.0})
    for bad in ({"rows": 3, "hosts": 2}, {"text_tokens": 99}, {"drop": 1.0}, {"captions": {"short": 0.0}}):
        with pytest.raises(InputError):
            stream(**bad)
    with pytest.raises(InputError, match="is empty"):
        pipeline.latents([], data(), tokenizer=Letters(), patch=PATCH, seed=0)


CROPS = ((2, 5, 16, 24), (4, 1, 32, 16))


def test_world_batches_cycle_through_the_crops_and_resume():
    config = SimpleNamespace(source="world", crops=CROPS)
    found = list(islice(pipeline.clips(config, seed=0), 7))
    for step, (batch, cursor) in enumerate(found):
        assert batch["video"].shape == (*CROPS[step % 2], 3) and batch["video"].dtype == np.uint8
        assert cursor == {"step": step + 1}
    same([b for b, _ in islice(pipeline.clips(config, seed=0, cursor=found[2][1]), 4)], [b for b, _ in found[3:]])
    scene = worlds.sample(int(pipeline.shuffled(0, worlds.HELD_OUT, 0)), size=(24, 16), frames=5)
    np.testing.assert_array_equal(found[0][0]["video"][0], worlds.render(scene))
    halves = [[b["video"] for b, _ in islice(pipeline.clips(config, seed=0, host=h, hosts=2), 7)] for h in range(2)]
    for (batch, _), *parts in zip(found, *halves):
        for host, part in enumerate(parts):
            np.testing.assert_array_equal(part, batch["video"][host::2])


def test_crops_of_files_come_from_clips_that_are_large_enough():
    rng = np.random.default_rng(0)
    videos = [rng.integers(0, 256, (1, *size, 3), np.uint8) for size in ((40, 30), (8, 8), (32, 20), (15, 90))]
    files = [
        {"media": media.encode(media.Video(v, 1)), "frames": 1, "fps": 1, "height": v.shape[1], "width": v.shape[2]}
        for v in videos
    ]
    config = SimpleNamespace(source=files, crops=((6, 1, 24, 16),))
    found = list(islice(pipeline.clips(config, seed=1), 4))
    at = Counter()
    for batch, _ in found:
        for box in batch["video"][:, 0]:
            places = [
                (i, y, x)
                for i in (0, 2)
                for y in range(videos[i].shape[1] - 23)
                for x in range(videos[i].shape[2] - 15)
                if np.array_equal(videos[i][0, y : y + 24, x : x + 16], box)
            ]
            assert len(places) == 1
            at[places[0]] += 1
    assert len(at) > 15 and {i for i, *_ in at} == {0, 2}
    same([b for b, _ in islice(pipeline.clips(config, seed=1, cursor={"step": 1}), 3)], [b for b, _ in found[1:]])
    with pytest.raises(InputError, match="none of the 4 clips is as large as the crop 9x24x16"):
        next(pipeline.clips(SimpleNamespace(source=files, crops=((1, 9, 24, 16),)), seed=0))
    with pytest.raises(InputError, match="rows dealt to 4"):
        pipeline.clips(SimpleNamespace(source="world", crops=CROPS), seed=0, hosts=4)


def test_a_crop_of_a_long_clip_is_that_of_the_whole():
    """Beyond a key frame, at a rate that no float holds; of the clip no more is held than the crop."""
    rng = np.random.default_rng(0)
    frames = np.cumsum(rng.integers(-9, 10, (300, 4, 6, 1)), 0).repeat(8, 1).repeat(8, 2).repeat(3, 3) % 256
    video = media.Video(frames.astype(np.uint8), 30000 / 1001)
    record = {"media": media.encode(video), "frames": 300, "fps": np.float32(video.fps), "height": 32, "width": 48}
    whole = media.decode(record["media"]).frames
    for seed in range(20):
        draw = np.random.default_rng(seed)
        f, y, x = (int(draw.integers(0, n)) for n in (292, 17, 25))
        found = pipeline.crop(record, (9, 16, 24), np.random.default_rng(seed))
        np.testing.assert_array_equal(found, whole[f : f + 9, y : y + 16, x : x + 24])


def test_damaged_clips_leave_their_place_to_others():
    """One whose bytes are cut, and one that has fewer frames than it says: known only when they are read."""
    videos = [np.full((2, 20, 20, 3), grey, np.uint8) for grey in (40, 120, 200)]
    facts = {"frames": 2, "fps": 8, "height": 20, "width": 20}
    files = [facts | {"media": media.encode(media.Video(v, 8))} for v in videos]
    files[0]["media"] = files[0]["media"][:200]
    files[2]["media"] = media.encode(media.Video(videos[2][:1], 8))
    (batch, _) = next(pipeline.clips(SimpleNamespace(source=files, crops=((9, 2, 16, 16),)), seed=0))
    assert np.abs(batch["video"].astype(int) - 120).max() < 4
    with pytest.raises(InputError, match=r"none of the 1 clips is as large as the crop 2x16x16 .* and whole"):
        next(pipeline.clips(SimpleNamespace(source=files[:1], crops=((9, 2, 16, 16),)), seed=0))
