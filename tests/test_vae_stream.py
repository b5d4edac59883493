"""Laws of frames and clips larger than memory: tiles == whole, rows on eight devices == one, memory flat in length."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.models import vae_stream
from sora_jax.models.vae import VAE
from sora_jax.pod import mesh as pod

SHAPES = {
    "linear skip": dict(
        width=4, multipliers=(1, 2), blocks=1, time=(2,), space=(2,), patch=2, channels=3, linear_skip=True
    ),
    "wan 2.1": dict(width=4, multipliers=(1, 2), blocks=1, time=(2,), space=(2,), channels=3),
    "wan 2.2": dict(
        width=4, decoder_width=6, multipliers=(1, 2), blocks=1, time=(2,), space=(2,), patch=2, channels=3, shortcuts=True
    ),
}


def made(shape: dict, video: np.ndarray) -> tuple[VAE, dict]:
    """A VAE whose every weight is drawn: each path carries something."""
    vae = VAE(**shape)
    shapes = jax.eval_shape(lambda: vae.init(jax.random.key(0), video))["params"]
    rng = np.random.default_rng(0)

    def draw(path, x):
        noise = rng.standard_normal(x.shape, np.float32) * (1 / np.sqrt(max(1, np.prod(x.shape[:-1]))))
        return jnp.asarray(noise + (1.0 if path[-1].key in ("scale", "latent_std") else 0.0))

    return vae, jax.tree_util.tree_map_with_path(draw, shapes)


def whole(vae: VAE, params: dict, x, method: str):
    return np.asarray(jax.jit(lambda x: vae.apply({"params": params}, x, method=method))(x))


@pytest.mark.parametrize("name", SHAPES)
def test_tiles_equal_the_whole(name):
    video = np.random.default_rng(1).uniform(-1, 1, (1, 5, 56, 48, 3)).astype(np.float32)
    vae, params = made(SHAPES[name], video[:, :3])
    z = whole(vae, params, video, "encode")
    into, out = vae_stream.reach(vae)
    tile = 3
    assert tile + 2 * max(into, out) < z.shape[2], "a tile's window must be less than the frame for this to test much"
    np.testing.assert_allclose(vae_stream.tile_encode(vae, params, video, tile, 1), z, atol=1e-5)
    painted = np.full(video.shape, np.nan, np.float32)
    for frames, rows, columns, pixels in vae_stream.tile_decode(vae, params, z, tile, 1):
        painted[:, frames, rows, columns] = pixels
    np.testing.assert_allclose(painted, whole(vae, params, z, "decode"), atol=1e-5)


def test_reach_is_what_gradients_say():
    vae, params = made(SHAPES["wan 2.1"], np.zeros((1, 3, 16, 16, 3), np.float32))
    into, out = vae_stream.reach(vae)
    x = np.random.default_rng(1).standard_normal((1, 1, 32, 2, 8), np.float32)
    z = np.zeros((1, 1, 32, 2, 3), np.float32)

    def paint(x):
        return jnp.square(vae.apply({"params": params}, x, z, method="decode_outer")[:, :, 32:34]).sum()

    rows = np.flatnonzero(np.abs(jax.grad(paint)(x)).sum((0, 1, 3, 4)))
    assert (rows.min(), rows.max()) == (16 - out, 16 + out)
    video = np.random.default_rng(1).standard_normal((1, 1, 64, 4, 3), np.float32)

    def look(video):
        return jnp.square(vae.apply({"params": params}, video, method="encode_outer")[:, :, 16]).sum()

    rows = np.flatnonzero(np.abs(jax.grad(look)(video)).sum((0, 1, 3, 4)))
    assert 32 - 2 * into <= rows.min() and rows.max() <= 33 + 2 * into


def test_every_later_piece_runs_one_program_and_holds_the_same():
    vae, params = made(SHAPES["wan 2.2"], np.zeros((1, 3, 16, 16, 3), np.float32))
    compiled = vae_stream._piece._cache_size()
    for method, chunks in (
        ("encode", [np.zeros((1, f, 16, 16, 3), np.float32) for f in (1, *[4] * 12)]),
        ("decode", [np.zeros((1, f, 4, 4, 3), np.float32) for f in (1, *[2] * 12)]),
    ):
        held = []
        for y in vae_stream._stream(vae, params, ((x,) for x in chunks), method):
            held.append(sum(x.nbytes for x in jax.live_arrays()) - y.nbytes)
        assert len(set(held[2:])) == 1, f"{method}: what is held grows: {held}"
    assert vae_stream._piece._cache_size() == compiled + 4  # a first and a later piece of each


@pytest.mark.parametrize("name", ["wan 2.1", "wan 2.2"])
def test_rows_on_eight_devices_equal_one(name):
    video = np.random.default_rng(1).uniform(-1, 1, (1, 5, 64, 16, 3)).astype(np.float32)
    vae, params = made(SHAPES[name], video[:, :3])
    mesh = pod.make({"data": 2, "fsdp": 2, "context": 2, "ring": 1, "tensor": 1})
    z = whole(vae, params, video, "encode")
    chunks = [video[:, :1], video[:, 1:3], video[:, 3:]]
    pieces = [np.asarray(x) for x in vae_stream.stream_encode(vae, params, chunks, mesh)]
    np.testing.assert_allclose(np.concatenate(pieces, 1), z, atol=1e-5)
    painted = list(vae_stream.stream_decode(vae, params, z, 1, mesh))
    assert {shard.data.shape[2] for shard in painted[1].addressable_shards} == {8}, "pixels stay in rows on devices"
    np.testing.assert_allclose(
        np.concatenate([np.asarray(x) for x in painted], 1), whole(vae, params, z, "decode"), atol=1e-5
    )
