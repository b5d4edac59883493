"""Laws of packing: patches come back, each clip stands in one row, padding is 0, a restored packer goes on the same."""

import json

import numpy as np
import pytest
from PIL import Image

from sora_jax.data import packing
from sora_jax.data.packing import Clip, Packer, collate, grid_of, patchify, positions, unpatchify
from sora_jax.errors import InputError
from tests.benchmarks import bench_packing

PATCH = (1, 2, 2)


def sizes(count: int, seed: int = 0) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    return [(int(n), int(t)) for n, t in zip(rng.integers(1, 65, count), rng.integers(1, 12, count))]


def stream(packer: Packer, clips, rows: int = 1, start: int = 0):
    """The steps that come out while clips go in."""
    for i, size in enumerate(clips, start):
        packer.add(i, size)
        while (step := packer.take(rows)) is not None:
            yield step


def clip(rng, z, words: int = 3) -> Clip:
    grid = grid_of(z.shape, PATCH)
    return Clip(patchify(z, PATCH), positions(grid), grid, rng.integers(1, 50, words).tolist())


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 17, 8), (3, 4, 6), (5, 7, 9), (2, 2, 3)])
@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 2, 2), (1, 1, 1), (2, 3, 4)])
def test_unpatchify_is_the_inverse_at_any_size(size, patch):
    z = np.random.default_rng(0).normal(size=(*size, 3)).astype(np.float32)
    grid, (f, h, w) = grid_of(size, patch), size
    x = patchify(z, patch)
    assert x.shape == (np.prod(grid), np.prod(patch) * 3)
    back = unpatchify(x, grid, patch)
    np.testing.assert_array_equal(back[:f, :h, :w], z)
    np.testing.assert_array_equal(back, np.pad(z, [(0, b - n) for n, b in zip(z.shape, back.shape)], mode="edge"))


def test_a_patch_holds_what_its_position_says():
    z = np.arange(4 * 6 * 8 * 2).reshape(4, 6, 8, 2)
    for x, (f, h, w) in zip(patchify(z, (2, 2, 2)), positions((2, 3, 4))):
        np.testing.assert_array_equal(x.reshape(2, 2, 2, 2), z[2 * f : 2 * f + 2, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2])
    assert positions((2, 3, 4)).dtype == np.int32


def test_every_clip_stands_in_one_row_and_rows_hold_their_limits():
    clips = sizes(2000)
    packer = Packer(row=128, text_row=24, segments=6, open_rows=8, lookahead=12)
    rows = [row for step in stream(packer, clips, 4) for row in step]
    assert len(packer.open) <= 8 and len(packer.closed) < 12 + 4
    packer.flush()
    rows += packer.take(len(packer.closed))
    assert sorted(i for row in rows for i in row) == list(range(2000))
    assert not packer.sizes and not packer.open and not packer.closed
    for row in rows:
        patches, tokens = np.sum([clips[i] for i in row], 0)
        assert patches <= 128 and tokens <= 24 and len(row) <= 6


def test_a_restored_packer_goes_on_the_same():
    clips = sizes(600)
    whole = list(stream(Packer(128, 40, 6, 8, 6), clips, 2))
    for stop in (1, 17, 300):
        first = Packer(128, 40, 6, 8, 6)
        steps = list(stream(first, clips[:stop], 2))
        state = json.loads(json.dumps(first.state()))
        second = Packer(128, 40, 6, 8, 6)
        second.restore(state, clips.__getitem__)
        assert second.state() == state
        assert steps + list(stream(second, clips[stop:], 2, stop)) == whole
    assert len(json.dumps(state)) < 600


def test_fewer_open_rows_than_restored_closes_the_fullest():
    first, second = Packer(128, 999, 9, 8), Packer(128, 999, 9, 3)
    list(stream(first, sizes(100)))
    second.restore(first.state(), sizes(100).__getitem__)
    assert len(second.open) == 3 and len(second.closed) == len(first.open) - 3
    held = lambda packer: sorted(i for row in packer.open + packer.closed for i in row)
    assert held(first) == held(second)


def test_smaller_rows_than_restored_are_packed_anew():
    clips = sizes(100)
    first, second = Packer(128, 999, 9, 8, 9), Packer(90, 40, 6, 8, 9)
    list(stream(first, clips))
    second.restore(first.state(), clips.__getitem__)
    held = lambda packer: sorted(i for row in packer.open + packer.closed for i in row)
    assert held(first) == held(second) == sorted(second.sizes)
    for row in second.open + second.closed:
        patches, tokens = np.sum([clips[i] for i in row], 0)
        assert patches <= 90 and tokens <= 40 and len(row) <= 6


def test_what_fits_no_row_is_one_sentence():
    packer = Packer(64, 8, 4, 4)
    with pytest.raises(InputError, match="65 patches do not fit into a row of 64"):
        packer.add(0, (65, 1))
    with pytest.raises(InputError, match="9 text tokens do not fit into a row of 8"):
        packer.add(0, (1, 9))
    with pytest.raises(InputError, match=r"data\.open_rows is 0"):
        Packer(64, 8, 4, 0)


def test_rows_are_full_and_look_ahead_balances_cost():
    clips = [(n, 1) for n, _ in sizes(6000)]
    balance = {}
    for lookahead in (0, 64):
        steps = list(stream(Packer(128, 128, 32, 16, lookahead), clips, 8))
        report = packing.report([[clips[i][0] for i in row] for step in steps for row in step], 128, 8, attention=0.1)
        assert report["padding"] < 0.02
        balance[lookahead] = report["balance"]
    assert balance[0] < 0.85 < 0.93 < balance[64]


def test_no_row_waits_for_ever():
    packer, oldest = Packer(128, 128, 32, 16, 64), 0
    for i, (n, _) in enumerate(sizes(12000)):
        packer.add(i, (n, 1))
        packer.take(8)
        oldest = max(oldest, i - min(packer.sizes))
    assert oldest < 2500  # of a buffer of 300, out of 12000


def test_hosts_that_do_not_speak_take_rows_of_like_cost():
    clips = [(n, 1) for n, _ in sizes(16000)]
    costs = []
    for host in range(4):
        steps = stream(Packer(128, 128, 32, 16, 64), clips[host::4], 4)
        mine = clips[host::4]
        costs.append([np.mean([packing.cost((mine[i][0] for i in row), 128, 0.1) for row in step]) for step in steps])
    costs = np.array([c[: min(map(len, costs))] for c in costs])
    assert (costs.mean(0) / costs.max(0)).mean() > 0.93


def test_the_bars_at_scale():
    """What bench_packing.py prints for 200,000 clips, on a fifth of them."""
    lengths = bench_packing.draw_lengths(40_000)
    rows, _ = bench_packing.packed(lengths, hosts=1, open_rows=32, lookahead=512)
    report = packing.report(rows, bench_packing.ROW, bench_packing.RANKS)
    assert report["padding"] <= 0.005 and report["balance"] >= 0.95


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    zs = [rng.normal(size=(f, h, w, 4)).astype(np.float32) for f, h, w in ((1, 4, 4), (3, 5, 6), (2, 8, 2), (1, 2, 3))]
    rows = [[0, 1], [2, 3]]
    clips = [clip(rng, z, words) for z, words in zip(zs, (1, 5, 2, 4))]
    return zs, clips, rows, collate([[clips[i] for i in row] for row in rows], 40, 8, 3)


def test_packed_rows_are_exactly_their_clips(batch):
    zs, clips, rows, out = batch
    shapes = {"x": (2, 40, 16), "pos": (2, 40, 3), "seg": (2, 40), "grid": (2, 3, 3), "txt": (2, 8), "txt_seg": (2, 8)}
    assert {k: v.shape for k, v in out.items()} == shapes
    assert all(v.dtype == (np.float32 if k == "x" else np.int32) for k, v in out.items())
    for r, row in enumerate(rows):
        for number, i in enumerate(row, 1):
            here, grid, (f, h, w, _) = out["seg"][r] == number, out["grid"][r, number - 1], zs[i].shape
            np.testing.assert_array_equal(unpatchify(out["x"][r, here], grid, PATCH)[:f, :h, :w], zs[i])
            np.testing.assert_array_equal(out["pos"][r, here], positions(grid))
            assert out["txt"][r, out["txt_seg"][r] == number].tolist() == clips[i].txt
        assert out["seg"][r].max() == out["txt_seg"][r].max() == len(row)


def test_padding_is_zero(batch):
    out = batch[-1]
    padding = out["seg"] == 0
    assert padding.sum() == 80 - sum(len(c.x) for c in batch[1])
    assert not out["x"][padding].any() and not out["pos"][padding].any()
    assert not out["txt"][out["txt_seg"] == 0].any() and not out["grid"][:, 2].any()


def test_the_report_counts_right(batch):
    found = packing.lengths(batch[-1]["seg"])
    assert found == [[4, 27], [8, 2]]
    report = packing.report(found, 40, 2, attention=0.5)
    assert report["fill"] == pytest.approx(41 / 80) and report["padding"] == pytest.approx(39 / 80)
    costs = np.array([40 + 0.5 * (16 + 729), 40 + 0.5 * (64 + 4)])
    assert report["clips"] == 2 and report["balance"] == pytest.approx(costs.mean() / costs.max())


def test_dropped_patches_keep_their_places(batch):
    full = batch[1][1]
    part = packing.dropped(full, 0.4, np.random.default_rng(0))
    assert len(part.x) == len(part.pos) == packing.kept(27, 0.4) == 17 and part.grid == full.grid
    index = [positions(full.grid).tolist().index(p) for p in part.pos.tolist()]
    assert index == sorted(set(index))
    np.testing.assert_array_equal(part.x, full.x[index])
    assert packing.kept(1, 0.9) == 1


def test_the_picture_shows_every_clip(batch, tmp_path):
    packing.draw(batch[-1], tmp_path / "rows.png", width=400)
    pixels = np.asarray(Image.open(tmp_path / "rows.png"))
    assert pixels.shape[1] == 416
    _, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    assert (counts > 100).sum() >= 4 + 2  # four clips, padding, the page
