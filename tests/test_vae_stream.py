"""Laws of frames and clips larger than memory: tiles == whole, rows on eight devices == one, memory flat in length."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sora_jax.models import vae_stream
from sora_jax.models.vae import VAE
from sora_jax.pod import hlo
from sora_jax.pod import mesh as pod

SHAPES = {
    "2.1": dict(width=4, multipliers=(1, 2), blocks=1, time=(2,), space=(2,), channels=3),
    # Wan 2.2's, with what the bundled model has beside it
    "2.2": dict(width=4, decoder_width=6, multipliers=(1, 1), blocks=1, time=(2,), space=(2,), patch=2, channels=3)
    | dict(shortcuts=True, linear_skip=True, mend=2),
}


def made(shape: dict, video: np.ndarray) -> tuple[VAE, dict]:
    """A VAE whose every weight is drawn: each path carries something."""
    vae = VAE(**shape)
    shapes = jax.eval_shape(lambda: vae.init(jax.random.key(0), video))["params"]
    rng = np.random.default_rng(0)

    def draw(path, x):
        noise = rng.standard_normal(x.shape, np.float32) * (1 / np.sqrt(max(1, np.prod(x.shape[:-1]))))
        return jnp.asarray(1.0 + 0.1 * noise if path[-1].key in ("scale", "latent_std") else noise)

    return vae, jax.tree_util.tree_map_with_path(draw, shapes)


def whole(vae: VAE, params: dict, x, method: str):
    return np.asarray(jax.jit(lambda x: vae.apply({"params": params}, x, method=method))(x))


@pytest.mark.parametrize("name", SHAPES)
def test_tiles_equal_the_whole(name):
    _, side, _ = VAE(**SHAPES[name]).grid
    video = np.random.default_rng(1).uniform(-1, 1, (1, 3, 28 * side, 4 * side, 3)).astype(np.float32)
    vae, params = made(SHAPES[name], video[:, :3])
    z = whole(vae, params, video, "encode")
    into, out = vae_stream.reach(vae)
    tile = 3
    assert tile + 2 * max(into, out) < z.shape[2], "a tile's window must be less than the frame for this to test much"
    np.testing.assert_allclose(vae_stream.tile_encode(vae, params, video, tile, 1), z, atol=1e-5)
    painted = np.full(video.shape, np.nan, np.float32)
    for frames, rows, columns, pixels in vae_stream.tile_decode(vae, params, z, tile, 1):
        painted[:, frames, rows, columns] = pixels
    np.testing.assert_allclose(painted, whole(vae, params, z, "decode"), rtol=1e-6, atol=1e-5)


def test_reach_is_what_gradients_say():
    vae, params = made(SHAPES["2.1"], np.zeros((1, 3, 16, 16, 3), np.float32))
    into, out = vae_stream.reach(vae)
    x = np.random.default_rng(1).standard_normal((1, 1, 32, 2, 8), np.float32)
    z = np.zeros((1, 1, 32, 2, 3), np.float32)

    def paint(x):
        return jnp.square(vae.apply({"params": params}, x, z, method="decode_outer")[:, :, 32:34]).sum()

    rows = np.flatnonzero(np.abs(jax.jit(jax.grad(paint))(x)).sum((0, 1, 3, 4)))
    assert (rows.min(), rows.max()) == (16 - out, 16 + out)
    video = np.random.default_rng(1).standard_normal((1, 1, 64, 4, 3), np.float32)

    def look(video):
        return jnp.square(vae.apply({"params": params}, video, method="encode_outer")[:, :, 16]).sum()

    rows = np.flatnonzero(np.abs(jax.jit(jax.grad(look))(video)).sum((0, 1, 3, 4)))
    assert 32 - 2 * into <= rows.min() and rows.max() <= 33 + 2 * into


def test_every_later_piece_runs_one_program_and_holds_the_same():
    vae, params = made(SHAPES["2.2"], np.zeros((1, 3, 16, 16, 3), np.float32))
    compiled = vae_stream.piece._cache_size()
    for method, chunks in (
        ("encode", [np.zeros((1, f, 16, 16, 3), np.float32) for f in (1, *[4] * 12)]),
        ("decode", [np.zeros((1, f, 4, 4, 3), np.float32) for f in (1, *[2] * 12)]),
    ):
        held = []
        for y in vae_stream._stream(vae, params, ((x,) for x in chunks), method):
            held.append(sum(x.nbytes for x in jax.live_arrays()) - y.nbytes)
        assert len(set(held[2:])) == 1, f"{method}: what is held grows: {held}"
    assert vae_stream.piece._cache_size() == compiled + 4  # a first and a later piece of each


MESH = {"data": 1, "fsdp": 2, "context": 4, "ring": 2, "tensor": 1}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("clips", [1, 2])
def test_rows_on_eight_devices_equal_one(name, clips):
    _, side, _ = VAE(**SHAPES[name]).grid
    video = np.random.default_rng(1).uniform(-1, 1, (clips, 3, 16 * side, 3 * side, 3)).astype(np.float32)
    vae, params = made(SHAPES[name], video)
    mesh = pod.make(MESH)
    z = whole(vae, params, video, "encode")
    pieces = [np.asarray(x) for x in vae_stream.stream_encode(vae, params, [video[:, :1], video[:, 1:]], mesh)]
    np.testing.assert_allclose(np.concatenate(pieces, 1), z, atol=1e-5)
    painted = list(vae_stream.stream_decode(vae, params, z, 1, mesh))
    parts = {shard.data.shape for shard in painted[1].addressable_shards}
    assert parts == {(1, 2, 2 * side * clips, 3 * side, 3)}, "pixels stay in rows on devices"
    np.testing.assert_allclose(
        np.concatenate([np.asarray(x) for x in painted], 1), whole(vae, params, z, "decode"), rtol=1e-6, atol=1e-5
    )


@pytest.mark.parametrize("name", SHAPES)
def test_devices_send_nothing_larger_than_the_keys_and_values_of_the_attention(name):
    vae, params = made(SHAPES[name], np.zeros((1, 3, 8, 8, 3), np.float32))
    time, side, _ = vae.grid
    mesh = pod.make(MESH)
    rows = NamedSharding(mesh, PartitionSpec(None, None, ("fsdp", "ring", "ulysses")))
    z = np.zeros((1, 2, 16, 32, vae.channels), np.float32)  # as much as a few rows of pixels, less than a frame
    video = np.zeros((1, 2 * time, 16 * side, 32 * side, 3), np.float32)
    for method, x in (("decode", z), ("encode", video)):
        begin = partial(vae_stream.piece, vae, params, {}, first=True, method=method, mesh=mesh)
        arguments = jax.eval_shape(lambda first, begin=begin: begin(xs=(first,)), x[:, :1])[1], (x,)
        cache, xs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=rows), arguments)
        compiled = vae_stream.piece.lower(vae, params, cache, xs, False, method, mesh).compile()
        _, collectives, _ = hlo.read(compiled.as_text(), range(8))
        keys = 2 * z[..., 0].size * 4 * max(vae.width, vae.decoder_width) * max(vae.multipliers)  # and values, in bytes
        assert all(each.size <= keys for each in collectives), max(collectives, key=lambda each: each.size)
        assert any(each.kind == "collective-permute" for each in collectives), "rows are exchanged"
