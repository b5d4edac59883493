"""Laws of noise: conversions are inverse to each other, Euler on a linear field is exact, levels stay in (0, 1)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.diffusion import flow
from sora_jax.errors import InputError


@pytest.mark.parametrize("kind", flow.PREDICTIONS)
def test_every_prediction_converts_to_the_same_velocity_and_back(kind):
    keys = jax.random.split(jax.random.key(0), 3)
    x0, eps = jax.random.normal(keys[0], (64, 8)), jax.random.normal(keys[1], (64, 8))
    t = jax.random.uniform(keys[2], (64, 1), minval=0.03, maxval=0.97)
    x_t = flow.add_noise(x0, eps, t)
    v = flow.velocity(kind, flow.target(kind, x0, eps, t), x_t, t)
    np.testing.assert_allclose(v, eps - x0, atol=2e-4)
    np.testing.assert_allclose(flow.clean(v, x_t, t), x0, atol=2e-4)
    np.testing.assert_allclose(flow.noise(v, x_t, t), eps, atol=2e-4)


def test_shift_keeps_the_ends_and_composes():
    t = jnp.linspace(0, 1, 11)
    assert flow.shifted(t, 3.0)[0] == 0 and flow.shifted(t, 3.0)[-1] == 1
    np.testing.assert_allclose(flow.shifted(flow.shifted(t, 3.0), 1 / 3.0), t, atol=1e-6)
    assert (flow.shifted(t, 3.0)[1:-1] > t[1:-1]).all()
    assert float(flow.shift_of(jnp.asarray(400), 100.0)) == 2.0


@pytest.mark.parametrize("law", flow.LAWS)
def test_levels_are_noise_levels_and_symmetric_or_documented(law):
    t = np.asarray(flow.draw_levels(law, jax.random.key(0), (20_000,)))
    assert t.min() > -1e-6 and t.max() < 1 + 1e-6
    assert abs(t.mean() - 0.5) < 0.02  # all four laws are symmetric about 1/2


def test_unknown_names_say_what_there_is():
    with pytest.raises(InputError, match="velocity"):
        flow.target("noise", *[jnp.zeros(1)] * 3)
    with pytest.raises(InputError, match="logit_normal"):
        flow.draw_levels("normal", jax.random.key(0), (1,))
