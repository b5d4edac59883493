"""Laws of the autoencoder: causal (by gradient), an image is a one-frame video, streamed == full."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.models.vae import VAE, principal_components, split_blocks
from sora_jax.models.vae_stream import stream_decode, stream_encode

SHAPES = {
    "tiny": dict(
        width=4,
        multipliers=(1, 2, 2),
        blocks=1,
        time=(2, 2),
        space=(2, 1),
        patch=4,
        channels=3,
        linear_skip=True,
        mend=4,
    ),
    "wan 2.1": dict(width=4, multipliers=(1, 2, 2), blocks=1, time=(2, 2), space=(2, 2), patch=1, channels=3),
    "wan 2.2": dict(width=4, decoder_width=6, multipliers=(1, 2, 2), blocks=1, time=(2, 2), space=(2, 1), patch=2)
    | dict(channels=3, shortcuts=True),
}


@pytest.fixture(scope="module", params=SHAPES)
def vae(request):
    module = VAE(**SHAPES[request.param])
    video = jax.random.uniform(jax.random.key(0), (1, 13, 16, 24, 3), minval=-1)
    params = jax.jit(module.init)(jax.random.key(0, impl="rbg"), video[:, :5])["params"]
    rng = np.random.default_rng(0)  # no zeros: every path must carry something
    params = jax.tree.map(lambda x: jnp.asarray(x + 0.05 * rng.standard_normal(x.shape, np.float32)), params)
    encode = jax.jit(lambda x: module.apply({"params": params}, x, method="encode"))
    decode = jax.jit(lambda z: module.apply({"params": params}, z, method="decode"))
    return module, params, video, encode, decode


def test_shapes(vae):
    module, _, video, encode, decode = vae
    _, side, _ = module.grid
    z = encode(video)
    assert z.shape == (1, 4, 16 // side, 24 // side, 3)
    assert decode(z).shape == video.shape


def test_streamed_equals_full(vae):
    module, params, video, encode, decode = vae
    z = encode(video)
    pieces = jnp.concatenate(list(stream_encode(module, params, [video[:, :1], video[:, 1:5], video[:, 5:]])), 1)
    np.testing.assert_allclose(pieces, z, atol=1e-5)
    np.testing.assert_allclose(jnp.concatenate(list(stream_decode(module, params, z, 2)), 1), decode(z), atol=1e-5)


def test_causal_by_gradient(vae):
    _, _, video, encode, decode = vae
    # latent 1 holds frames 1..4: it may depend on frames 0..4, on nothing after
    influence = jax.jit(jax.grad(lambda x: jnp.square(encode(x)[:, 1]).sum()))(video)
    per_frame = np.abs(np.asarray(influence)).sum((0, 2, 3, 4))
    assert (per_frame[:5] > 0).all() and (per_frame[5:] == 0).all()
    influence = jax.jit(jax.grad(lambda z: jnp.square(decode(z)[:, :5]).sum()))(encode(video))
    per_frame = np.abs(np.asarray(influence)).sum((0, 2, 3, 4))
    assert (per_frame[:2] > 0).all() and (per_frame[2:] == 0).all()


def test_an_image_is_a_one_frame_video(vae):
    _, _, video, encode, decode = vae
    np.testing.assert_allclose(encode(video[:, :1]), encode(video)[:, :1], atol=1e-5)
    z = encode(video)
    np.testing.assert_allclose(decode(z[:, :1]), decode(z)[:, :1], atol=1e-5)


def test_principal_components_half_whiten_and_rebuild():
    rng = np.random.default_rng(0)
    blocks = rng.standard_normal((500, 4)) @ rng.standard_normal((4, 30)) + 3.0  # four dimensions, hidden in thirty
    into, out = principal_components(blocks, 4)
    z = blocks @ into["kernel"] + into["bias"]
    strength = np.sqrt(np.linalg.eigvalsh(np.cov(blocks.T))[::-1][:4])  # of the components, in pixels
    np.testing.assert_allclose(np.cov(z.T), np.diag(strength), atol=1e-3)
    np.testing.assert_allclose(z @ out["kernel"] + out["bias"], blocks, atol=1e-3)


def test_blocks_split_by_the_grid():
    video = np.arange(5 * 16 * 8 * 3).reshape(1, 5, 16, 8, 3)
    head, rest = split_blocks(video, (4, 8, 8), True)
    assert head.shape == (1, 1, 2, 1, 192) and rest.shape == (1, 1, 2, 1, 768)
    assert (head[0, 0, 1, 0].reshape(8, 8, 3) == video[0, 0, 8:]).all()
