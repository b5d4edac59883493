"""A run that begins with a model's weights begins where that model ended."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sora_jax
from sora_jax.errors import InputError
from sora_jax.models.dit import LATE, DiT
from sora_jax.train.init import begun


def trained() -> dict:
    params = sora_jax.load("tiny").params
    return {name: params[name] for name in ("text", "dit")}  # what the DiT's task trains


def test_the_weights_are_the_models():
    wanted = trained()
    state = begun("tiny", jax.tree.map(jnp.zeros_like, wanted))
    for which in ("params", "ema"):
        jax.tree.map(np.testing.assert_array_equal, state[which], wanted)
    both = jax.tree.leaves(state["params"]), jax.tree.leaves(state["ema"])
    assert all(a is not b for a, b in zip(*both, strict=True))  # a step gives both away


def test_a_model_of_other_shapes_is_refused():
    params = trained()
    there = params["dit"]["patch_in"]["kernel"].shape
    params["dit"]["patch_in"]["kernel"] = jnp.zeros((there[0], 64))
    with pytest.raises(InputError, match=rf"tiny .* dit.patch_in.kernel is \[{there[0]}, {there[1]}\] there, \[.*64\]"):
        begun("tiny", params)
    params["dit"]["patch_in"]["lora"] = params["dit"]["patch_in"].pop("kernel")
    with pytest.raises(InputError, match=r"dit.patch_in.lora is not there"):
        begun("tiny", params)


def test_what_adds_nothing_may_be_new(tmp_path, capsys):
    """A model goes on with a stem, with absolute positions or with a gate that it has learned without."""
    model = sora_jax.load("tiny")
    drawn = trained()
    for name in LATE:
        del model.params["dit"][name]
        if name != "stem_in":  # whose features go through stem_out
            drawn["dit"][name] = jax.tree.map(jnp.zeros_like, drawn["dit"][name])
    model.config["dit"] |= {"gated": False, "absolute": False, "stem": 0}
    model.save(tmp_path / "without")
    state = begun(str(tmp_path / "without"), drawn)
    said = capsys.readouterr().err
    assert all(f"dit.{name}" in said for name in LATE)
    quick = {"patch": (1, 1, 1), "unroll": 1}  # one layer compiled, not six
    more, less = (DiT(**config["dit"] | quick) for config in (sora_jax.load("tiny").config, model.config))
    x, ctx = (jax.random.normal(jax.random.key(i), (1, 12, width)) for i, width in enumerate((48, 128)))
    seg, pos = jnp.ones((1, 12), jnp.int32), jnp.stack(jnp.meshgrid(*map(jnp.arange, (1, 3, 4)), indexing="ij"), -1)
    rows = x, pos.reshape(1, 12, 3), seg, jnp.full((1, 2), 0.7), seg, ctx, seg
    for which in ("params", "ema"):
        a = more.apply({"params": state[which]["dit"]}, *rows)
        np.testing.assert_array_equal(a, less.apply({"params": model.params["dit"]}, *rows))
