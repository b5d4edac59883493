"""Optimizers by config: AdamW, or Muon for the hidden matrices with AdamW for everything else.

AdamW: Loshchilov & Hutter 2019 (arXiv 1711.05101). Muon: Jordan et al. 2024 (kellerjordan.github.io/posts/muon), scaled
as in "Muon is scalable for LLM training" (arXiv 2502.16982): updates have AdamW's typical size 0.2, so that one
learning rate suits both, whatever the shape of a matrix.
"""

import difflib
import re

import jax
import optax

from sora_jax.errors import InputError

MUON_MOMENTUM = 0.95  # the Muon post's; b1 and b2 of the config are Adam's
ADAMW_RMS = 0.2  # typical size of an AdamW update, arXiv 2502.16982 section 2.2

# Muon is for maps from features to features. What reads or writes the outside (pixels, patches, tokens, noise levels)
# is learned by AdamW even when it is a matrix.
OUTSIDE = re.compile(r"(^|/)(head|head_gate|quant|time_\w+|\w+_in|\w+_out)(/|$)")


def make(opt, steps: int):
    """(optax transformation, schedule) of `config.opt`; the schedule is step -> learning rate.

    Keys: name 'adamw' | 'muon'; lr, its peak; adam_lr, the peak for what Muon leaves to AdamW (read only for 'muon');
    b1, b2, weight_decay (of kernels; with 'muon' of its own alone); warmup, steps of linear growth from 0; schedule
    'constant' | 'cosine' (to 0 at `steps`) | 'linear' (constant, then to 0 over the last fifth); clip, the global norm
    gradients are cut to.
    Raises InputError for an unknown name or schedule.
    """
    lr = schedule(opt.schedule, opt.lr, opt.warmup, steps)
    if opt.name == "adamw":
        rule = optax.adamw(lr, b1=opt.b1, b2=opt.b2, weight_decay=opt.weight_decay, mask=_kernels)
    elif opt.name == "muon":
        rule = optax.contrib.muon(
            lr,
            beta=MUON_MOMENTUM,
            weight_decay=opt.weight_decay,
            adam_b1=opt.b1,
            adam_b2=opt.b2,
            adam_learning_rate=schedule(opt.schedule, opt.adam_lr, opt.warmup, steps),
            muon_weight_dimension_numbers=matrices,
            consistent_rms=ADAMW_RMS,
        )
    else:
        raise InputError(_unknown("opt.name", opt.name, ["adamw", "muon"]))
    return optax.chain(optax.clip_by_global_norm(opt.clip), rule), lr


def schedule(name: str, peak: float, warmup: int, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up from 0, then the named course. Raises InputError for an unknown name."""
    rest = max(steps - warmup, 1)
    if name == "constant":
        course = optax.constant_schedule(peak)
    elif name == "cosine":
        course = optax.cosine_decay_schedule(peak, rest)
    elif name == "linear":
        decay = max(rest // 5, 1)
        course = optax.join_schedules(
            [optax.constant_schedule(peak), optax.linear_schedule(peak, 0.0, decay)], [rest - decay]
        )
    else:
        raise InputError(_unknown("opt.schedule", name, ["constant", "cosine", "linear"]))
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), course], [warmup]) if warmup else course


def matrices(params):
    """For each leaf, which axes make the matrix that Muon orthogonalises; None where AdamW should take it.

    Dense kernels are [in out]; scanned stacks [layers in out], each layer its own matrix; convolutions
    [... in out], where all but the last axis feed one output.
    """

    def axes(path, leaf):
        module, _, name = jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/")
        if not name.endswith("kernel") or leaf.ndim < 2 or OUTSIDE.search(module):
            return None
        reduction = (leaf.ndim - 2,) if leaf.ndim <= 3 else tuple(range(leaf.ndim - 1))
        return optax.contrib.MuonDimensionNumbers(reduction, (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(axes, params)


def _kernels(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.tree_util.keystr(path, simple=True).endswith("kernel"), params
    )


def _unknown(key: str, value: str, known: list[str]) -> str:
    near = difflib.get_close_matches(str(value), known, 1, 0.0)[0]
    return f"config.{key} is {value!r}, which is none of {', '.join(known)}; did you mean {near!r}?"
