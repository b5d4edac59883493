"""The laws of checkpoints: whole or absent, bit for bit, on any mesh."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sora_jax.errors import InputError
from sora_jax.train import checkpoint

CURSOR = {"index": 7, "remainder": [[3, 1], [], ["row", None]], "big": 2**53 + 1, "share": 0.1}


@pytest.fixture(scope="module")
def state():
    params = {"blocks": {"kernel": jax.random.normal(jax.random.key(0), (3, 8, 16))}, "bias": jnp.arange(8.0) / 3}
    opt = optax.contrib.muon(1e-3).init({**params, "kernel": params["blocks"]["kernel"][0]})
    key = jax.random.key_data(jax.random.key(5))
    ema = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    return {"step": jnp.int32(3), "params": params, "ema": ema, "opt": opt, "key": key, "loss": jnp.float32(jnp.nan)}


def abstract(state, sharding=None):
    def leaf(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding)

    return jax.tree.map(leaf, state)


@pytest.fixture(scope="module")
def folder(state, tmp_path_factory):
    """Checkpoints of steps 1 to 4, of which 3 and 4 stay; the state differs by its step."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with checkpoint.Checkpoints(folder, keep=2) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(step, {**state, "step": jnp.int32(step)}, CURSOR)
            assert checkpoints.saved == (step - 1 or None)  # the one before is whole, this one under way
    return folder


def test_the_newest_stay(folder):
    assert checkpoint.steps(folder) == [3, 4]


def test_what_comes_back_is_what_was_saved(state, folder):
    restored, cursor = checkpoint.restore(folder, abstract(state))
    want = {**state, "step": jnp.int32(4)}
    assert jax.tree.structure(restored) == jax.tree.structure(want)
    assert cursor == CURSOR and json.dumps(cursor) == json.dumps(CURSOR)
    assert checkpoint.digest(restored, cursor) == checkpoint.digest(want, CURSOR)


def test_onto_another_mesh(state, folder):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    restored, _ = checkpoint.restore(
        folder, {"params": {**abstract(state["params"]), "bias": abstract(state["params"]["bias"], rows)}}
    )
    assert restored["params"]["bias"].sharding == rows
    np.testing.assert_array_equal(restored["params"]["bias"], state["params"]["bias"])


def test_entries_alone_as_numpy(state, folder):
    restored, cursor = checkpoint.restore(folder, {"ema": None})
    assert list(restored) == ["ema"] and cursor == CURSOR
    assert isinstance(restored["ema"]["bias"], np.ndarray) and restored["ema"]["bias"].dtype == jnp.bfloat16
    jax.tree.map(np.testing.assert_array_equal, restored["ema"], jax.device_get(state["ema"]))
    assert set(checkpoint.restore(folder)[0]) == set(state)


def test_the_caller_may_give_its_buffers_away_at_once(state, tmp_path):
    """A save goes on while the next steps overwrite the arrays it was given."""
    overwrite = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    big = jnp.zeros((512, 1024))
    with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
        cursor = {"index": 0}
        for step in range(3):
            want = checkpoint.digest({"params": big}, cursor)
            checkpoints.save(step, {"params": big}, cursor)
            for _ in range(20):
                big = overwrite(big)
                cursor["index"] += 1
            checkpoints.wait()
            assert checkpoint.digest(*checkpoint.restore(tmp_path)) == want


def test_what_is_not_whole_is_not_there(state, tmp_path):
    """A temporary folder of a killed save is ignored, then swept; an older checkpoint half deleted does no harm."""
    with checkpoint.Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, step)
    half = tmp_path / "9.orbax-checkpoint-tmp"
    (half / "params").mkdir(parents=True)
    for path in (tmp_path / "1").iterdir():
        if path.is_file():
            path.unlink()
    assert checkpoint.restore(tmp_path)[1] == 2
    with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.saved == 2
        checkpoints.save(3, state, 3)
    assert not half.exists()
    assert checkpoint.steps(tmp_path) == [3]


def test_in_a_bucket_what_is_whole_says_so(bucket):
    """There nothing is renamed: a save that was cut short has its number for a name."""
    for step in (3, 12):
        (bucket / "run" / str(step) / "params").mkdir(parents=True)
    (bucket / "run" / "3" / "commit_success.txt").touch()
    assert checkpoint.steps("gs://bucket/run") == [3]


def test_nothing_there(tmp_path):
    assert checkpoint.restore(tmp_path) is None and checkpoint.restore(tmp_path / "absent") is None
    assert not (tmp_path / "absent").exists()


def test_another_model_is_named(state, folder):
    wanted = abstract(state)
    for change, words in [
        ({"bias": jax.ShapeDtypeStruct((9,), jnp.float32)}, r"params/bias is \(8,\) there and \(9,\) in this config"),
        ({"head": jax.ShapeDtypeStruct((9,), jnp.float32)}, r"params/head is absent there and \(9,\) in this config"),
    ]:
        with pytest.raises(InputError, match=words):
            checkpoint.restore(folder, {**wanted, "params": {**wanted["params"], **change}})


@pytest.mark.parametrize("lost", ["all", "an entry", "half a file"])
def test_a_damaged_one_is_named_with_the_one_before(state, folder, tmp_path, lost):
    here = tmp_path / "checkpoints"
    shutil.copytree(folder, here)
    newest = here / "4"
    if lost == "half a file":
        largest = max(
            (path for path in (newest / "params").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
        )
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    else:
        shutil.rmtree(newest if lost == "all" else newest / "params")
        newest.mkdir(exist_ok=True)
    with pytest.raises(InputError, match=r"4 is damaged|4 holds another model, or is damaged"):
        checkpoint.restore(here, abstract(state))
    shutil.rmtree(newest)
    assert int(checkpoint.restore(here, abstract(state))[0]["step"]) == 3


def test_no_place_to_save(state, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"could not save a checkpoint in .*there is no checkpoint yet"):
        checkpoint.Checkpoints(tmp_path / "file" / "checkpoints", keep=1)
    with pytest.raises(InputError, match=r"config.keep is 0"):
        checkpoint.Checkpoints(tmp_path / "run", keep=0)


def test_the_digest_sees_everything(state):
    digests = [
        checkpoint.digest(tree, cursor)
        for tree, cursor in [
            ({"a": np.zeros(4, np.float32)}, {"x": 1, "y": 2}),
            ({"b": np.zeros(4, np.float32)}, {"x": 1, "y": 2}),
            ({"a": np.zeros((2, 2), np.float32)}, {"x": 1, "y": 2}),
            ({"a": np.zeros(4, np.int32)}, {"x": 1, "y": 2}),
            ({"a": -np.zeros(4, np.float32)}, {"x": 1, "y": 2}),
            ({"a": np.zeros(4, np.float32)}, {"x": 1, "y": 3}),
        ]
    ]
    assert len(set(digests)) == len(digests)
    a, b = {"a": np.ones(2), "b": np.zeros(2)}, {"b": np.zeros(2), "a": np.ones(2)}
    assert checkpoint.digest(a, {"x": 1, "y": 2}) == checkpoint.digest(b, {"y": 2, "x": 1})
