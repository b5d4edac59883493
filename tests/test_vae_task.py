"""What mends a VAE's pixels, trained alone: latents, and all that was trained on them, stay what they were."""

import jax
import numpy as np
import pytest
from test_model import CONFIG, model  # noqa: F401  (a random model with every part)

from sora_jax.errors import InputError
from sora_jax.model import load
from sora_jax.models.vae import LATE
from sora_jax.train import configs, export, loop, tasks

CROPS = "data.crops=((8, 5, 16, 16),)"  # a row for each device


@pytest.mark.smoke
def test_a_mended_model_is_the_one_it_was_but_for_what_mends(model, tmp_path):  # noqa: F811
    model.save(tmp_path / "before")
    short = ["steps=3", "save_every=3", "eval_every=0", "picture_every=0", "opt.warmup=0"]
    config = configs.read("configs/vae.py:mend", [*short, CROPS, f"init={tmp_path / 'before'}"])
    config.vae.update({k: tuple(v) if isinstance(v, list) else v for k, v in CONFIG["vae"].items()} | {"mend": 4})
    loop.run(tasks.make(config), config, tmp_path / "run")
    after = export.export(tmp_path / "run", tmp_path / "after")
    mended = {name: after.params["vae"].pop(name) for name in LATE}
    assert np.asarray(mended["video_mend"]["conv_out"]["kernel"]).any()
    before = load(tmp_path / "before")
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    assert after.tokenizer.data == before.tokenizer.data
    assert load(tmp_path / "after").config == before.config | {"vae": after.config["vae"]}


def test_repainted_latents_are_near_the_clips_own_at_low_noise_and_leave_at_high():
    """By the bundled transformer, whose errors are what is to be mended."""
    near, far = (repainted_psnr(level) for level in (0.01, 1.0))
    assert near > 30 and far < near - 3


def repainted_psnr(level: float) -> float:
    """Of the bundled VAE's pixels of images whose latents were noised up to a level and painted back."""
    config = configs.read("configs/vae.py:mend", ["init=tiny", "data.crops=((8, 1, 32, 32),)", f"loss.repaint={level}"])
    task, params = tasks.make(config), load("tiny").params
    batch, _ = next(task.batches(None))
    params["vae"] = task.init(jax.random.key(0))["vae"] | params["vae"]
    return float(jax.jit(task.loss)(params, batch, jax.random.key(1))[1]["psnr"])


@pytest.mark.parametrize(
    "setting, sentence",
    [
        ("init=", "give --config.init"),
        ('frozen=("decoder",)', r"config.frozen is \('decoder',\): the encoder may"),
        ("opt.weight_decay=0.1", r"config.opt.weight_decay is 0.1: it would shrink"),
        ("frozen=()", r"config.loss.repaint is 0.65: that is for --config.init of a text-to-video model"),
    ],
)
def test_what_cannot_stand_still(setting, sentence):
    config = configs.read("configs/vae.py:mend", ["init=tiny", setting])
    with pytest.raises(InputError, match=sentence):
        tasks.make(config)
