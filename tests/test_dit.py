"""Laws of the diffusion transformer: packed == alone, neighbours change nothing, one program for any sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.data import packing
from sora_jax.data.packing import positions
from sora_jax.errors import InputError
from sora_jax.model import load
from sora_jax.models import kernels, layers
from sora_jax.models.dit import AROUND, DiT, around, place, sides_of
from sora_jax.train import configs, dit_task, tasks

ROW, TEXT, WIDTH = 48, 24, 48


@pytest.fixture(scope="module")
def dit():
    return DiT(width=WIDTH, depth=2, heads=2, mlp=96, channels=4, gated=True, dtype="float32")


@pytest.fixture(scope="module")
def apply(dit):
    return jax.jit(lambda p, b: dit.apply({"params": p}, *b))


def clip(seed: int, grid: tuple[int, int, int], words: int) -> dict:
    rng = np.random.default_rng(seed)
    n = int(np.prod(grid))
    return {
        "x": rng.standard_normal((n, 16)).astype(np.float32),
        "pos": positions(grid),
        "t": float(rng.uniform(0.1, 0.9)),
        "ctx": rng.standard_normal((words, WIDTH)).astype(np.float32),
    }


def row(clips: list[dict], shift: int = 0) -> tuple:
    """The model's arguments for these clips side by side, after `shift` patches of padding."""
    x, pos = np.zeros((1, ROW, 16), np.float32), np.zeros((1, ROW, 3), np.int32)
    seg, level = np.zeros((1, ROW), np.int32), np.zeros((1, ROW), np.int32)
    t, ctx, txt_seg = (
        np.zeros((1, 4), np.float32),
        np.zeros((1, TEXT, WIDTH), np.float32),
        np.zeros((1, TEXT), np.int32),
    )
    at, word = shift, 0
    for i, c in enumerate(clips, 1):
        here = slice(at, at := at + len(c["x"]))
        x[0, here], pos[0, here], seg[0, here], level[0, here], t[0, i] = c["x"], c["pos"], i, i, c["t"]
        there = slice(word, word := word + len(c["ctx"]))
        ctx[0, there], txt_seg[0, there] = c["ctx"], i
    return tuple(jnp.asarray(a) for a in (x, pos, seg, t, level, ctx, txt_seg))


@pytest.fixture(scope="module")
def params(dit):
    params = jax.jit(dit.init)(jax.random.key(0), *row([clip(0, (1, 2, 2), 3)]))["params"]
    leaves, tree = jax.tree.flatten(params)  # no zeros: every path must carry something
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(tree, [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])


CLIPS = [clip(1, (2, 3, 2), 5), clip(2, (1, 2, 4), 3), clip(3, (3, 2, 3), 7)]


def test_packed_equals_alone(apply, params):
    together = np.asarray(apply(params, row(CLIPS)))[0]
    at = 0
    for c in CLIPS:
        alone = np.asarray(apply(params, row([c], shift=5)))[0, 5 : 5 + len(c["x"])]
        np.testing.assert_allclose(together[at : at + len(c["x"])], alone, atol=1e-5)
        at += len(c["x"])


def test_a_neighbour_changes_nothing_bitwise(apply, params):
    n = len(CLIPS[0]["x"])
    other = [CLIPS[0], {**CLIPS[1], "x": 100 * CLIPS[1]["x"], "t": 0.01, "ctx": -CLIPS[1]["ctx"]}, CLIPS[2]]
    a, b = apply(params, row(CLIPS)), apply(params, row(other))
    assert (np.asarray(a)[0, :n] == np.asarray(b)[0, :n]).all()
    assert not np.allclose(a[0, n : n + 8], b[0, n : n + 8])


def test_gradients_packed_equal_the_sum_of_gradients_alone(dit, params):
    grad = jax.jit(
        jax.grad(lambda p, b: jnp.sum(jnp.where(b[2][..., None] > 0, dit.apply({"params": p}, *b), 0.0) ** 2))
    )
    together = grad(params, row(CLIPS))
    alone = jax.tree.map(lambda *g: sum(g), *(grad(params, row([c])) for c in CLIPS))
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone)):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max()) + 1e-5)


def test_any_sizes_are_one_program(dit, params):
    f = jax.jit(lambda p, b: dit.apply({"params": p}, *b))
    f(params, row(CLIPS))
    f(params, row([clip(4, (1, 6, 4), 2)]))
    f(params, row([clip(5, (4, 2, 5), 9)]))
    assert f._cache_size() == 1


def test_long_rows_in_blocks_equal_the_whole(monkeypatch):
    key = jax.random.key(0)
    q, k, v = (jax.random.normal(i, (2, 50, 2, 8)) for i in jax.random.split(key, 3))
    seg = jnp.asarray(np.repeat([[1, 2, 0], [3, 3, 1]], [20, 20, 10], axis=1))
    whole = layers.attend(q, k, v, seg, seg)
    monkeypatch.setitem(kernels.BLOCK, "cpu", 16)
    np.testing.assert_allclose(layers.attend(q, k, v, seg, seg), whole, atol=1e-6)


def test_rotary_positions_are_relative():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 24))
    pos = lambda *p: jnp.asarray([[p]])

    def score(a, b):
        return float((layers.rotate(q, *layers.rope(a, 24)) * layers.rotate(k, *layers.rope(b, 24))).sum())

    assert score(pos(1, 2, 3), pos(0, 0, 0)) == pytest.approx(score(pos(6, 3, 9), pos(5, 1, 6)), abs=1e-5)
    assert score(pos(1, 2, 3), pos(0, 0, 0)) != pytest.approx(score(pos(1, 2, 3), pos(1, 0, 0)), abs=1e-3)


def test_a_gate_begins_at_nothing_and_hears_noise_alone(dit, params, apply):
    batch = row([clip(1, (2, 2, 3), 4)])
    assert not any(map(jnp.any, jax.tree.leaves(jax.jit(dit.init)(jax.random.key(0), *batch)["params"]["head_gate"])))
    gate = params["head_gate"]
    closed = apply(params | {"head_gate": jax.tree.map(jnp.zeros_like, gate)}, batch)
    plain = dit.clone(gated=False).apply({"params": {k: v for k, v in params.items() if k != "head_gate"}}, *batch)
    np.testing.assert_allclose(closed, plain, atol=1e-5)
    assert (apply(params, batch) != closed)[:, :12].any()
    with pytest.raises(InputError, match="given is 3"):
        jax.eval_shape(dit.clone(given=3).init, jax.random.key(0), *batch)


def test_a_patch_hears_its_place_in_its_own_clip():
    """Its index and its share of the clip's sides, whatever stands beside the clip in the row."""
    small, wide = clip(1, (1, 2, 2), 3), clip(2, (2, 2, 4), 4)
    alone, packed = (place(b[1], sides_of(*b[1:3])) for b in (row([wide]), row([small, wide], shift=5)))
    np.testing.assert_array_equal(packed[0, 9:25], alone[0, :16])
    last = alone[0, 15].reshape(6, -1)
    np.testing.assert_allclose(last[:3, 0], np.cos([1, 1, 3]), atol=1e-5)
    np.testing.assert_allclose(last[3:, 0], np.cos(1000 * np.array([0.75, 0.75, 0.875])), atol=1e-3)


def test_a_patch_hears_the_neighbours_that_it_has():
    """Those of its own clip, zeros beyond its ends, in padding, and where a patch of it was dropped from the row."""
    clips = clip(1, (2, 3, 4), 3), clip(2, (1, 3, 2), 3)
    batch = row(clips, shift=3)
    heard = lambda batch: around(*batch[:3], sides_of(*batch[1:3]))[0].reshape(ROW, len(AROUND), -1)
    for c, at in zip(clips, (3, 27), strict=True):
        f, h, w = c["pos"].max(0) + 1
        framed = np.pad(c["x"].reshape(f, h, w, -1), [(1, 1)] * 3 + [(0, 0)])
        for n, (t, y, x) in enumerate(AROUND + 1):
            there = framed[t : t + f, y : y + h, x : x + w].reshape(f * h * w, -1)
            np.testing.assert_array_equal(heard(batch)[at : at + f * h * w, n], there)
    assert not heard(batch)[:3].any() and not heard(batch)[33:].any()
    kept = np.delete(np.arange(24), 5)
    thinned = heard(row([clips[0] | {name: clips[0][name][kept] for name in ("x", "pos")}]))
    whole = heard(row(clips[:1]))
    np.testing.assert_array_equal(thinned[:23].any((1, 2)), True)
    assert ((thinned[:23] == whole[kept]) | (thinned[:23] == 0)).all() and not thinned[:23].all()


@pytest.mark.parametrize("more", [{"absolute": True}, {"stem": 40}])
def test_what_a_model_did_not_have_begins_at_nothing(dit, params, more):
    """A model that has learned without it goes on as it was; packed == alone holds when it is heard."""
    wide = clip(2, (2, 2, 4), 4)
    alone, packed = row([wide]), row([clip(1, (1, 2, 2), 3), wide], shift=5)
    there = dit.clone(**more)
    begun = jax.jit(there.init)(jax.random.key(0), *alone)["params"]
    new = {name: w for name, w in begun.items() if name not in params}
    before = dit.apply({"params": params}, *alone)
    np.testing.assert_array_equal(there.apply({"params": params | new}, *alone), before)
    heard = jax.tree.map(lambda w: jax.random.normal(jax.random.key(1), w.shape), new)
    told = [there.apply({"params": params | heard}, *batch) for batch in (alone, packed)]
    assert (told[0] != before).any()
    np.testing.assert_allclose(told[1][0, 9:25], told[0][0, :16], atol=2e-4)


@pytest.mark.slow
def test_text_helps_where_it_is_heard_and_not_before(monkeypatch):
    """`eval/text_helps`: nothing at the start, when the last map is zero; something in the bundled model."""
    tiny, config = load("tiny"), configs.read("configs/dit.py:smoke")
    monkeypatch.setattr(dit_task, "WORLD_CLIPS", 16)
    monkeypatch.setattr(dit_task, "EVAL_BATCHES", 1)
    monkeypatch.setattr(dit_task, "EVAL_LEVELS", (0.5, 0.7))
    config.dit.update(tiny.config["dit"])
    task = tasks.make(config)
    helps = lambda params: task.evaluate(params, jax.random.key(0))["text_helps"]
    assert helps(task.init(jax.random.key(0))) == 0
    assert helps({part: tiny.params[part] for part in ("text", "dit")}) > 0.005


def test_the_untold_are_the_same_clips_in_the_same_places():
    clips = [
        packing.Clip(np.full((n, 4), n, np.float32), np.zeros((n, 3), np.int32), (1, 1, n), [*range(5, 5 + words), 1])
        for n, words in ((3, 4), (2, 0), (4, 6))
    ]
    batch = packing.collate([clips[:2], clips[2:]], 6, 8, 3)
    silent = dit_task.untold(batch, [1])
    assert all(np.array_equal(silent[name], batch[name]) for name in ("x", "pos", "seg", "grid"))
    assert silent["txt"].tolist() == [[1, 1, *[0] * 6], [1, *[0] * 7]]
    assert silent["txt_seg"].tolist() == [[1, 2, *[0] * 6], [1, *[0] * 7]]
    filled = dit_task.untold(packing.collate([clips[:1]], 6, 8, 3), [1, 0, 0, 0])  # where texts are so many rows
    assert (filled["txt"].tolist(), filled["txt_seg"].tolist()) == ([[1, *[0] * 7]], [[1, 1, 1, 1, 0, 0, 0, 0]])


def test_what_is_wrong_with_the_held_out_clips_or_the_vae_is_said_at_once():
    config = configs.read("configs/dit.py:smoke", ["vae_model=nowhere"])
    with pytest.raises(InputError, match="vae_model is 'nowhere', which is no model folder"):
        tasks.make(config).batches(None, 0, 1)
    config = configs.read("configs/dit.py:smoke", ["data.held_out=nowhere"])
    with pytest.raises(InputError, match="nowhere"):
        tasks.make(config).batches(None, 0, 1)


def test_a_clip_larger_than_a_row_is_said_at_once():
    config = configs.read("configs/dit.py:tiny", ["data.row=100", "data.drop=0.0"])
    dit_task.check({"a": [5, 4, 5], "b": None}, (1, 1, 1), config.data)
    with pytest.raises(InputError, match=r"b holds a clip of 5x5x5 latents .* 125 patches do not fit into .* 100"):
        dit_task.check({"a": [5, 4, 5], "b": [5, 5, 5]}, (1, 1, 1), config.data)
    dit_task.check({"b": [5, 5, 5]}, (1, 2, 2), config.data)
