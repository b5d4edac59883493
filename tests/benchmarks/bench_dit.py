"""The DiT's forward pass and training step beside diffusers', on the same weights: time and memory.

    python tests/benchmarks/bench_dit.py --peer .venv-parity/bin/python
    python tests/benchmarks/bench_dit.py --peer .venv-parity/bin/python --model wan-14b

Wan's geometry at 1/8 of its width, 17 frames of 256x256 (1,280 patches) and 512 text states, float32, two threads each,
in turns, all warmed up. A step is loss, gradients and AdamW; ours recomputes what the published variants of
configs/dit.py recompute. The peer's Python is that of `make parity`; it runs as it is and with its blocks compiled by
torch. Memory is a process's peak beyond what it held before it had weights; forward passes come before any step.
"""

# ruff: noqa: E402

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "parity")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from drawn import drawn, weight
from measured import measured, rss

from sora_jax.data.packing import patchify, positions
from sora_jax.model import unflat
from sora_jax.models.dit import DiT
from sora_jax.weights import wan
from sora_jax.weights.names import places

PUBLISHED = {  # 12 heads of 16, 15M parameters; 5 heads of 128, 212M
    "wan-1.3b": dict(width=192, depth=30, heads=12, mlp=1120),
    "wan-14b": dict(width=640, depth=40, heads=5, mlp=1728),
}
FIELDS = dict(channels=16, patch=(1, 2, 2), remat=True, keep="heads", dtype="float32")
LATENTS, TEXT, TIMESTEP, LR, DECAY = (5, 32, 32), (512, 512), 637, 1e-4, 0.01
TURNS = {"forward": 3, "step": 2}


def geometry(fields: dict) -> dict:
    """The same in diffusers' words, for the peer."""
    return {
        "dit": dict(
            patch_size=FIELDS["patch"], num_attention_heads=fields["heads"], in_channels=16, out_channels=16,
            attention_head_dim=fields["width"] // fields["heads"],
            text_dim=TEXT[1], ffn_dim=fields["mlp"], num_layers=fields["depth"],
        ),
        "x": (1, 16, *LATENTS), "target": (1, 16, *LATENTS), "text": (1, *TEXT),
        "timestep": TIMESTEP, "lr": LR, "weight_decay": DECAY,
    }  # fmt: skip


class Ours:
    """Our DiT on one clip in a row of its own length."""

    def __init__(self, fields: dict):
        jax.block_until_ready(jax.jit(jnp.dot)(np.ones((9, 9)), np.ones((9, 9))))  # the compiler is loaded
        self.held = rss()
        grid = tuple(n // p for n, p in zip(LATENTS, FIELDS["patch"], strict=True))
        patches, one = int(np.prod(grid)), np.ones
        row = lambda name: jnp.asarray(
            patchify(drawn(name, (1, 16, *LATENTS))[0].transpose(1, 2, 3, 0), (1, 2, 2))[None]
        )
        self.inputs = (
            row("x"), jnp.asarray(positions(grid)[None]), one((1, patches), np.int32), np.float32([[TIMESTEP / 1000]]),
            np.zeros((1, patches), np.int32), jnp.asarray(drawn("text", (1, *TEXT))), one((1, TEXT[0]), np.int32),
        )  # fmt: skip
        target, dit, optimizer = row("target"), DiT(**fields), optax.adamw(LR, weight_decay=DECAY)
        self.params = self.weights(fields, jax.eval_shape(dit.init, jax.random.key(0), *self.inputs)["params"])
        self.state = None
        painted = lambda params, inputs: dit.apply({"params": params}, *inputs)
        self.forward_ = jax.jit(lambda params, inputs: jnp.abs(painted(params, inputs)).mean())
        self.begin = jax.jit(optimizer.init)

        def step(params, state, inputs):
            loss, gradient = jax.value_and_grad(lambda p: jnp.square(painted(p, inputs) - target).mean())(params)
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, loss

        self.step_ = jax.jit(step, donate_argnums=(0, 1))

    def weights(self, fields: dict, shapes: dict) -> dict:
        """The peer's, drawn by their names."""
        leaves = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree.leaves_with_path(shapes)}
        ours = {path: np.empty(x.shape, np.float32) for path, x in leaves.items()}
        for name, place in places(wan.names(fields), "diffusers", fields["depth"]).items():
            there = ours[place.ours] if place.index is None else ours[place.ours][place.index]
            theirs = place.layout.theirs(np.broadcast_to(False, there.shape)).shape
            there[...] = place.layout.ours(weight(name, theirs))
        return unflat({path: jnp.asarray(ours.pop(path)) for path in list(ours)})

    def forward(self) -> float:
        return float(self.forward_(self.params, self.inputs))

    def step(self) -> float:
        if self.state is None:
            self.state = self.begin(self.params)
        self.params, self.state, loss = self.step_(self.params, self.state, self.inputs)
        return float(loss)

    def ask(self, what: str) -> list[float]:
        wall, cpu, peak, value = measured(getattr(self, what))
        return [wall, cpu, peak - self.held, value]


class Peer:
    """diffusers' in a process of its own."""

    def __init__(self, python: str, fields: dict, how: str):
        command = [python, ROOT / "tests" / "parity" / "time_wan_dit.py", json.dumps(geometry(fields)), how]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, what: str) -> list[float]:
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return [float(x) for x in self.process.stdout.readline().split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default="python", help="a Python with torch and diffusers")
    parser.add_argument("--model", default="wan-1.3b", choices=PUBLISHED)
    args = parser.parse_args()
    fields = FIELDS | PUBLISHED[args.model]
    ways = {"ours": Ours(fields)}
    ways |= {f"diffusers, {how}": Peer(args.peer, fields, how) for how in ("eager", "compiled")}
    for what, turns in TURNS.items():
        first = {name: way.ask(what)[3] for name, way in ways.items()}  # compiles
        assert np.ptp(list(first.values())) < 1e-4 * first["ours"], f"not the same: {first}"
        found = [{name: way.ask(what) for name, way in ways.items()} for _ in range(turns)]
        best = {name: [min(turn[name][k] for turn in found) for k in (0, 1)] for name in ways}
        for name, (wall, cpu) in best.items():
            peak = max(turn[name][2] for turn in found) / 2**30
            beside = "" if name == "ours" else f"; ours / this {best['ours'][0] / wall:.2f}"
            print(f"{what}, {name}: {wall:.2f} s, {cpu:.2f} s of CPU time, peak {peak:.2f} GiB{beside}", flush=True)


if __name__ == "__main__":
    main()
