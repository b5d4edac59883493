"""A run that begins with a model's weights begins where that model ended."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sora_jax
from sora_jax.errors import InputError
from sora_jax.train import loop


def trained() -> dict:
    params = sora_jax.load("tiny").params
    return {name: params[name] for name in ("text", "dit")}  # what the DiT's task trains


def test_the_weights_are_the_models():
    wanted = trained()
    state = loop.begun("tiny", jax.tree.map(jnp.zeros_like, wanted))
    for which in ("params", "ema"):
        jax.tree.map(np.testing.assert_array_equal, state[which], wanted)
    both = jax.tree.leaves(state["params"]), jax.tree.leaves(state["ema"])
    assert all(a is not b for a, b in zip(*both, strict=True))  # a step gives both away


def test_a_model_of_other_shapes_is_refused():
    params = trained()
    there = params["dit"]["patch_in"]["kernel"].shape
    params["dit"]["patch_in"]["kernel"] = jnp.zeros((there[0], 64))
    with pytest.raises(InputError, match=rf"tiny .* dit.patch_in.kernel is \[{there[0]}, {there[1]}\] there, \[.*64\]"):
        loop.begun("tiny", params)
    params["dit"]["patch_in"]["lora"] = params["dit"]["patch_in"].pop("kernel")
    with pytest.raises(InputError, match=r"dit.patch_in.lora is not there"):
        loop.begun("tiny", params)
