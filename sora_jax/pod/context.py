"""Attention over a row that several devices hold: context parallelism, two ways and both together.

    Ulysses  (arXiv:2309.14509)  an all-to-all trades patches for heads: each device attends its heads over all patches
                                 of the ring's part, and a second one trades back.                                  (1)
    Ring     (arXiv:2310.01889)  keys, values and their segments travel around; each device meets every part once and
                                 merges what it saw by the logarithm of its softmax denominator,
                                 out = sum_i exp(lse_i - lse) out_i,   lse = log sum_i exp(lse_i).                  (2)

A row is cut into rings' parts first, each of these among Ulysses' devices, so that after (1) a part is contiguous.
Queries that attend to something short (a patch to text) need neither: its keys and values, cut like patches, are
gathered whole on every device.

Imports nothing of `models`, which import it: the kernel that runs on each device is an argument. `spread` is what
`models.layers.attend` calls; `streamed` is the loop over keys, with its own backward pass, also for a row in one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from sora_jax.errors import InputError
from sora_jax.pod.mesh import PATCHES, ROWS, fitting, others

# What a rematerialised layer may keep (`jax.checkpoint_policies.save_only_these_names`): with OUT the backward pass
# does not repeat the attention, with TRIPS (q, k, v as they came and the result as it went back) nor its all-to-alls.
SAVED_OUT, SAVED_TRIPS = "attention_out", "attention_trips"
NOTHING = -1e30  # lse of a query that has seen no key


def spread(
    local: Callable,
    q: Float[Array, "b s n k"],
    k: Float[Array, "b j n k"],
    v: Float[Array, "b j n k"],
    q_seg: Int[Array, "b s"],
    kv_seg: Int[Array, "b j"],
) -> Float[Array, "b s n k"]:
    """`local(q, k, v, q_seg, kv_seg, ring)` on every device's part; ring names the axis that keys travel, or is None.

    The mesh is the ambient one (`pod.mesh.on`); without one, or where every axis is manual already, all is local. As
    many keys as queries are taken for a row's own patches and stay where they are but for (1) and (2); other keys are
    gathered, and so are those of a single head (a VAE's frame), whose queries are cut along every axis that rows leave.
    Both ways give the same numbers. Rows or patches that do not divide over their axes are copied along them, as in
    `pod.mesh.fitting`.
    Raises InputError when the heads do not divide over tensor x ulysses.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or all(kind == AxisType.Manual for kind in mesh.axis_types):
        return local(q, k, v, q_seg, kv_seg, None)
    sizes, heads = dict(mesh.shape), q.shape[2]
    own = k.shape[1] == q.shape[1] and heads > 1
    rows, patches = fitting(q.shape[:2], (ROWS, PATCHES), sizes)
    _, keys = fitting(k.shape[:2], (ROWS, PATCHES), sizes)
    if heads == 1:
        (patches,), (keys,) = (fitting(x.shape[1:2], (others(rows),), sizes) for x in (q, k))
    ring = "ring" if own and sizes["ring"] > 1 and "ring" in (patches or ()) else None
    ulysses = own and sizes["ulysses"] > 1 and "ulysses" in (patches or ())
    check_heads(heads, sizes["tensor"], sizes["ulysses"] if ulysses else 1)
    tensor = "tensor" if heads > 1 else None

    def part(q, k, v, q_seg, kv_seg):
        if ulysses:  # equation (1)
            q, k, v = (lax.all_to_all(x, "ulysses", 2, 1, tiled=True) for x in (q, k, v))
        elif keys and not own:  # its gradient is a reduce-scatter, where that of keys that come whole is an all-reduce
            k, v = (lax.all_gather(x, keys, axis=1, tiled=True) for x in (k, v))
        y = local(q, k, v, q_seg, kv_seg, ring)
        return checkpoint_name(lax.all_to_all(y, "ulysses", 1, 2, tiled=True), SAVED_TRIPS) if ulysses else y

    cut = P(rows, patches, tensor, None)
    if own:
        kv, q_ids, kv_ids = cut, P(rows, ring), P(rows, ring)
    else:
        kv, q_ids, kv_ids = P(rows, keys, tensor, None), P(rows, patches), P(rows, None)
    # check_vma: a Pallas kernel does not say along which axes its result varies
    part = jax.shard_map(part, in_specs=(cut, kv, kv, q_ids, kv_ids), out_specs=cut, check_vma=False)
    return part(q, k, v, q_seg, kv_seg)


def check_heads(heads: int, tensor: int, ulysses: int) -> None:
    """Raises InputError, with the nearest numbers that work, when heads do not divide over tensor x ulysses devices."""
    if heads == 1 or heads % (tensor * ulysses) == 0:
        return
    near = min((t for t in range(1, heads + 1) if heads % t == 0), key=lambda t: abs(t - tensor))
    fits = (u for u in range(1, heads // near + 1) if heads // near % u == 0)
    raise InputError(
        f"{heads} heads do not divide over mesh tensor x ulysses = {tensor} x {ulysses}: the nearest that works is "
        f"{near} x {min(fits, key=lambda u: abs(u - ulysses))}, and mesh.ring takes any part of mesh.context"
    )


# ------------------------------------------------------------------------------------------------ keys that travel


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def streamed(
    kernel,
    ring: str | None,
    q: Float[Array, "b n s k"],
    k: Float[Array, "b n j k"],
    v: Float[Array, "b n j k"],
    q_seg: Int[Array, "b s"],
    kv_seg: Int[Array, "b j"],
) -> Float[Array, "b n s k"]:
    """Attention of scaled queries, over the keys that come around the ring, or over those at hand where ring is None.

    kernel: see `models.kernels.Kernel`. Neither pass holds more than one part's scores; what is kept for the backward
    pass is q, k, v, the result and its lse, each of a device's own part.
    """
    return _forward(kernel, ring, q, k, v, q_seg, kv_seg)[0]


def _send(ring: str, x):
    size = lax.axis_size(ring)
    return lax.ppermute(x, ring, [(i, (i + 1) % size) for i in range(size)])


def _forward(kernel, ring, q, k, v, q_seg, kv_seg):
    if ring is None:
        return kernel.forward(q, k, v, q_seg, kv_seg)

    def merge(keys, out, lse):  # equation (2)
        new, new_lse = kernel.forward(q, keys[0], keys[1], q_seg, keys[2])
        total = jnp.logaddexp(lse, new_lse)
        return out * jnp.exp(lse - total)[..., None] + new * jnp.exp(new_lse - total)[..., None], total

    def step(carry, _):
        keys, out, lse = carry
        ahead = _send(ring, keys)  # needs nothing of this step: travels while it computes
        return (ahead, *merge(keys, out, lse)), None

    start = (k, v, kv_seg), jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:3], NOTHING, jnp.float32)
    carry, _ = lax.scan(step, start, None, lax.axis_size(ring) - 1)
    out, lse = merge(*carry)  # the last part need not travel on
    return out.astype(q.dtype), lse


def _forward_kept(kernel, ring, q, k, v, q_seg, kv_seg):
    q, k, v = (checkpoint_name(x, SAVED_TRIPS) for x in (q, k, v))
    out, lse = (checkpoint_name(x, SAVED_OUT) for x in _forward(kernel, ring, q, k, v, q_seg, kv_seg))
    return out, (q, k, v, q_seg, kv_seg, out, lse)


def _backward(kernel, ring, kept, d_out):
    q, k, v, q_seg, kv_seg, out, lse = kept
    if ring is None:
        return (*kernel.backward(q, k, v, q_seg, kv_seg, out, lse, d_out), None, None)

    def add(keys, dq, d_keys):
        k, v, kv_seg = keys
        new, *d_new = kernel.backward(q, k, v, q_seg, kv_seg, out, lse, d_out)
        return dq + new, jax.tree.map(jnp.add, d_keys, tuple(d_new))

    def step(carry, _):
        keys, dq, d_keys = carry
        ahead = _send(ring, keys)
        dq, d_keys = add(keys, dq, d_keys)
        return (ahead, dq, _send(ring, d_keys)), None

    zero = partial(jnp.zeros_like, dtype=jnp.float32)
    carry, _ = lax.scan(step, ((k, v, kv_seg), zero(q), (zero(k), zero(v))), None, lax.axis_size(ring) - 1)
    dq, d_keys = add(*carry)
    dk, dv = _send(ring, d_keys)  # home
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


streamed.defvjp(_forward_kept, _backward)
