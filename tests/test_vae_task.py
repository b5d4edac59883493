"""What mends a VAE's pixels, trained alone: the encoder, and with it every latent there is, stays what it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.errors import InputError
from sora_jax.model import Model, load
from sora_jax.models.vae import LATE, VAE
from sora_jax.train import configs, export, loop, tasks

SETTINGS = ["steps=3", "save_every=3", "eval_every=0", "picture_every=0", "opt.warmup=0", "vae.width=8", "vae.mend=4"]


@pytest.mark.smoke
def test_mending_leaves_latents_as_they_are(tmp_path):
    config = configs.read(
        "configs/vae.py:mend", [*SETTINGS, "data.crops=((8, 5, 16, 16),)", f"init={tmp_path / 'before'}"]
    )
    vae = config.vae.to_dict() | {"mend": 0}
    key = jax.random.key(0, impl="rbg")
    params = jax.jit(VAE(**vae).init)(key, jnp.zeros((1, 5, 16, 16, 3)))["params"]
    rng = np.random.default_rng(0)  # no zeros: every path must carry something
    params = jax.tree.map(lambda x: x + 0.05 * rng.standard_normal(x.shape, np.float32), params)
    Model({"vae": vae}, {"vae": params}).save(tmp_path / "before")
    loop.run(tasks.make(config), config, tmp_path / "run")
    before, after = load(tmp_path / "before").params["vae"], export.export(tmp_path / "run", tmp_path / "after").params
    mended = {name: after["vae"].pop(name) for name in LATE}
    assert all(np.asarray(leaf).any() for name in LATE for leaf in jax.tree.leaves(mended[name]["conv_out"]))
    jax.tree.map(np.testing.assert_array_equal, before, after["vae"])


@pytest.mark.parametrize(
    "setting, sentence",
    [("init=", "give --config.init"), ('frozen=("decoder",)', r"config.frozen is \('decoder',\): the encoder may")],
)
def test_what_cannot_stand_still(setting, sentence):
    config = configs.read("configs/vae.py:mend", [setting])
    with pytest.raises(InputError, match=sentence):
        tasks.make(config)
