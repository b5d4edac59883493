"""The laws of training, on a real task small enough to run in a second. Run as a program, this file trains it:

python tests/test_train.py WORKDIR [key=value ...]
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from sora_jax.errors import InputError
from sora_jax.train import checkpoint, loop, optimizer


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        dict(
            task="mlp",
            seed=0,
            steps=12,
            ema=0.9,
            save_every=4,
            keep=2,
            log_every=2,
            eval_every=6,
            picture_every=6,
            opt=dict(
                name="adamw",
                lr=1e-2,
                adam_lr=1e-2,
                weight_decay=0.1,
                b1=0.9,
                b2=0.99,
                warmup=3,
                schedule="cosine",
                clip=1.0,
                accumulate=1,
            ),
            dit=dict(width=32),
            pause=0.0,  # seconds that each batch takes to make
            poison=-1,  # the index of a batch that is all NaN
        )
    )


class MLP(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.Dense(self.width, name="x_in")(x))
        x = nn.gelu(nn.Dense(self.width, name="hidden")(x))
        return nn.Dense(1, name="head")(x)


class Regression(NamedTuple):
    """Learn a fixed linear map of 8 numbers, with noise on the input from the step's key."""

    config: ml_collections.ConfigDict

    def init(self, key):
        return MLP(self.config.dit.width).init(key, jnp.zeros((1, 8)))["params"]

    def loss(self, params, batch, key):
        # noise is the same for each row, so that micro-batches and devices do not change what a row sees
        x = batch["x"] + 0.1 * jax.random.normal(jax.random.wrap_key_data(self.key(key)), (8,))
        error = (MLP(self.config.dit.width).apply({"params": params}, x)[:, 0] - batch["y"]) ** 2
        return error.mean(), {"worst": error.max(), "never": jnp.float32(jnp.nan)}

    def key(self, key):
        return jax.random.key_data(jax.random.key(7) if self.config.opt.accumulate > 1 else key)

    def batches(self, cursor):
        index = cursor["index"] if cursor else 0
        while True:
            rng = np.random.default_rng([3, index])
            x = rng.normal(size=(16 if index % 2 else 8, 8)).astype(np.float32)  # two shapes in turn
            y = x @ np.linspace(-1, 1, 8, dtype=np.float32)
            time.sleep(self.config.pause)
            yield (
                {"x": x * np.float32(np.nan if index == self.config.poison else 1), "y": y},
                {"index": (index := index + 1)},
            )

    def evaluate(self, params, key):
        return {"bias": float(params["head"]["bias"][0] + jax.random.uniform(key))}

    def pictures(self, params, folder, step):
        (folder / f"{step:06d}.txt").write_text(str(params["head"]["bias"]))

    def flops(self, batch):
        return 6.0 * len(batch["x"]) * (8 + self.config.dit.width + 1) * self.config.dit.width

    def units(self, batch):
        return len(batch["x"])


def main(workdir: str, *settings: str) -> int:
    config = get_config()
    config.update_from_flattened_dict({k: json.loads(v) for k, v in (s.split("=") for s in settings)})
    try:
        loop.run(Regression(config), config, workdir)
    except InputError as error:
        print(f"sora-jax: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
