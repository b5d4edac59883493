"""Laws of weights in 8 bits: as near as 8 bits allow, layer by layer and column by column; 8 bits they are in memory
and on disk; out and in again is the same; and what cannot be said in them is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("qwix")

from sora_jax import cli, media
from sora_jax.errors import InputError
from sora_jax.model import Model, flat, load, shapes_of
from sora_jax.models.text import train_tokenizer
from sora_jax.pod import mesh as pod
from sora_jax.train.init import begun
from sora_jax.weights import lora, quant

CONFIG = {
    "vae": {"width": 4, "multipliers": [1], "blocks": 0, "time": [], "space": [], "patch": 2, "channels": 4},
    "text": {"vocab": 320, "width": 16, "depth": 2, "heads": 2, "head_width": 8, "mlp": 32, "bias_every_layer": True},
    "dit": {"width": 48, "depth": 3, "heads": 2, "mlp": 96, "channels": 4, "patch": [1, 1, 1], "dtype": "float32"},
    "flow": {"predict": "velocity", "shift": 3.0},
    "sample": {"row": 64, "text_row": 64, "steps": 3, "guidance": 2.0, "solver": "euler", "fps": 8.0, "frames": 5},
}
HALF_A_STEP = 0.5 / 127  # of the largest value of a column: what rounding to int8 may change, for symmetric steps
# Of normal weights whose columns' largest value is 2.5 times their spread, rounding's spread is 2.5 / 127 / 12^0.5 of
# that, 0.6 %; every product adds as much, and three layers have six or so in a row.
NEAR = 0.05


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("quant")
    tokenizer = train_tokenizer(["a red circle moves right"], root / "tokenizer.model", 320)
    model, rng = Model(CONFIG, {}, tokenizer), np.random.default_rng(0)
    # layers of sizes far apart, which one step for all of them would lose
    layers = lambda x: 10.0 ** -np.arange(len(x)).reshape(-1, *[1] * (x.ndim - 1)) if x.ndim == 3 else 1.0
    draw = lambda x: np.asarray(0.2 * layers(x) * rng.normal(size=x.shape), np.float32)
    model.params = jax.tree.map(draw, shapes_of(model))
    model.save(root / "model")
    return root / "model"


def velocity(model: Model) -> np.ndarray:
    rng = np.random.default_rng(1)
    x, ctx = rng.standard_normal((1, 12, 4), np.float32), rng.standard_normal((1, 5, 16), np.float32)
    pos = np.stack(np.unravel_index(np.arange(12), (2, 2, 3)), -1)[None].astype(np.int32)
    ones = np.ones((1, 12), np.int32)
    inputs = (x, pos, ones, np.float32([[0.3]]), 0 * ones, ctx, np.ones((1, 5), np.int32))
    return np.asarray(jax.jit(lambda p: model.dit.apply({"params": p}, *inputs))(model.params["dit"]))


@pytest.mark.parametrize("kind", quant.KINDS)
def test_the_output_is_near_and_the_memory_is_8_bits(folder, kind):
    full, narrow = load(folder), load(folder, quant=kind)
    want, got = velocity(full), velocity(narrow)
    assert 0 < np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)) < NEAR * (1 if kind == "int8" else 4)
    for part in ("dit", "text"):
        before, after = flat(full.params[part]), flat(narrow.params[part])
        matrices = {path for path, leaf in after.items() if quant.small(leaf)}
        assert matrices == {
            path for path, leaf in before.items() if path.startswith("blocks/") and path.endswith("kernel")
        }
        for path in matrices:
            assert after[path].qvalue.dtype == quant.KINDS[kind] and after[path].qvalue.itemsize == 1
            assert isinstance(after[path].qvalue, jax.Array) and after[path].scale.shape[1] == 1
        assert all(after[path] is not None and after[path].dtype == before[path].dtype for path in before)


def test_no_value_is_further_than_half_a_step(folder):
    before, after = (flat(load(folder, quant=kind).params["dit"]) for kind in ("", "int8"))
    for path, leaf in after.items():
        if quant.small(leaf):
            largest = np.abs(before[path]).max(1, keepdims=True)  # of every layer's every column
            wide = np.asarray(leaf.qvalue, np.float32) * leaf.scale
            assert (np.abs(wide - before[path]) <= HALF_A_STEP * largest * 1.001).all()


def test_only_the_layer_at_work_is_wide(folder):
    """No array of the compiled step has the shape of a stack of matrices and more than 8 bits."""
    model = load(folder, quant="int8")
    batch = jnp.zeros((1, 8, 4)), jnp.zeros((1, 8, 3), int), jnp.ones((1, 8), int), jnp.ones((1, 1))
    rest = jnp.zeros((1, 8), int), jnp.zeros((1, 5, 16)), jnp.ones((1, 5), int)
    program = jax.jit(lambda p: model.dit.apply({"params": p}, *batch, *rest)).lower(model.params["dit"]).compile()
    text = program.as_text()
    assert "s8[3,48,96]" in text and "f32[3,48,96]" not in text and "f32[3,48,48]" not in text


def test_a_folder_in_int8_comes_back_and_paints_the_same(folder, tmp_path, capsys):
    assert cli.main(["export", str(folder), "--out", str(tmp_path / "small"), "--dtype", "int8"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] < 0.6 * said["bytes_before"] and 0 < said["relative_error"]["dit"] < 0.01
    here, back = load(folder, quant="int8"), load(tmp_path / "small")
    for part in ("dit", "text", "vae"):
        jax.tree.map(np.testing.assert_array_equal, here.params[part], back.params[part])
    pictures = []
    for name, more in ((folder, ["--quant", "int8"]), (tmp_path / "small", [])):
        words = ["image", "a red circle", "--model", str(name), "--size", "8x8", "--steps", "2", *more]
        assert cli.main([*words, "--out", str(tmp_path / "a.png")]) == 0
        pictures.append(media.read(tmp_path / "a.png").frames)
    np.testing.assert_array_equal(*pictures)


def test_eight_devices_are_one(folder):
    """A kernel's steps lie as its columns do."""
    model = load(folder, quant="int8")
    mesh = pod.make(dict(data=1, fsdp=2, context=2, ring=2, tensor=2))
    with jax.set_mesh(mesh):
        spread = load(folder, quant="int8")
        kernel = spread.params["dit"]["blocks"]["self"]["q"]["kernel"]
        assert kernel.qvalue.sharding.shard_shape(kernel.qvalue.shape) == (3, 12, 24)
        assert kernel.scale.sharding.shard_shape(kernel.scale.shape) == (3, 1, 24)
        together = velocity(spread)
    np.testing.assert_allclose(together, velocity(model), atol=1e-5)


def test_a_lora_is_added_before_and_what_cannot_be_is_refused(folder, tmp_path):
    rng = np.random.default_rng(2)
    shapes = flat(lora.shapes(shapes_of(load(folder))["dit"], 2))
    added = {path: rng.normal(0, 0.1, x.shape).astype(np.float32) for path, x in shapes.items()}
    lora.write(tmp_path / "lora.safetensors", added, CONFIG["dit"])
    want = velocity(load(folder, lora=[tmp_path / "lora.safetensors"]))
    got = velocity(load(folder, lora=[tmp_path / "lora.safetensors"], quant="int8"))
    assert np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)) < NEAR
    quant.export(folder, tmp_path / "small")
    with pytest.raises(InputError, match="int8, whose steps a LoRA is smaller than"):
        load(tmp_path / "small", lora=[tmp_path / "lora.safetensors"])
    with pytest.raises(InputError, match="in int8 already"):
        load(tmp_path / "small", quant="float8")
    with pytest.raises(InputError, match="'int4'; choose one of int8, float8"):
        load(folder, quant="int4")
    with pytest.raises(InputError, match="is a model in 8 bits, to paint with"):
        begun(str(tmp_path / "small"), {"dit": load(folder).params["dit"]})
    with pytest.raises(InputError, match="a model folder holds int8"):
        load(folder, quant="float8").save(tmp_path / "float8")
