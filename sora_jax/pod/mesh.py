"""One mesh for every model and task: five axes, one table of rules, and nothing else says what lies where.

    axis      what is cut along it                                     how far apart its devices may be
    data      rows of a batch; weights are copied                      slices (DCN)
    fsdp      rows of a batch, and every weight (arXiv:2304.11277)     a slice (ICI)
    ring      patches of a row; keys travel around (arXiv:2310.01889)  neighbours
    ulysses   patches of a row, heads in attention (arXiv:2309.14509)  neighbours
    tensor    heads and hidden features (arXiv:1909.08053)             neighbours

The config gives data, fsdp, context = ring x ulysses, ring, tensor; one of them may be -1, for what is left. Weights
are cut along fsdp, ring and ulysses together: who shares a row shares its weights too.

A step is traced under the mesh (`on`), where `shard` pins activations and attention finds its way (`pod.context`).
Without a mesh both do nothing. This file imports nothing of the story, so that the models may read it.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sora_jax.errors import InputError

AXES = ("data", "fsdp", "ring", "ulysses", "tensor")
KEYS = ("data", "fsdp", "context", "ring", "tensor")  # of config.mesh
ROWS = ("data", "fsdp")
PATCHES = ("ring", "ulysses")
WEIGHTS = ("fsdp", "ring", "ulysses")
BY_PATCH = ("x", "z", "eps", "given", "pos", "seg", "ask", "level")  # of a batch, to train on or to paint

# (name, parameter's path, axes of its last dimensions); the first that matches claims it, also inside EMA and optimizer
# state, whose paths end like the parameter's. Dimensions before the last ones (a stack of layers) are whole everywhere.
RULES = (
    (
        "into heads or hidden features",
        r"(blocks/(self|cross)/[qkv]|pool/cross/[qkv]|blocks/(q|k|v|mlp_up|gate|up))/kernel$",
        (WEIGHTS, "tensor"),
    ),
    (
        "out of heads or hidden features",
        r"(blocks/(self|cross)/o|pool/cross/o|blocks/(o|mlp_down|down))/kernel$",
        ("tensor", WEIGHTS),
    ),
    ("a LoRA into them, A", r"blocks/((self|cross)/[qkv]|mlp_up)/lora_a$", (WEIGHTS, None)),
    ("a LoRA into them, B", r"blocks/((self|cross)/[qkv]|mlp_up)/lora_b$", (None, "tensor")),
    ("a LoRA out of them, A", r"blocks/((self|cross)/o|mlp_down)/lora_a$", ("tensor", None)),
    ("a LoRA out of them, B", r"blocks/((self|cross)/o|mlp_down)/lora_b$", (None, WEIGHTS)),
    ("biases of hidden features", r"((blocks|pool)/(self|cross)/[qkv]|blocks/mlp_up)/bias$", ("tensor",)),
    ("scales of heads", r"(blocks|pool)/(self|cross)/[qk]_norm/scale$", ("tensor",)),
    ("tables of words", r"(text|reader)/embed$", (None, WEIGHTS)),
    ("maps of noise levels", r"time_(in|out|projection)/kernel$", (None, WEIGHTS)),
    ("maps at the ends", r"(_in|_out|head|head_gate)/kernel$", (WEIGHTS, None)),
    ("the VAE's linear codec", r"vae/(image|video)_(in|out)$", (WEIGHTS, None)),
    ("convolutions and maps of the VAE", r"vae/.*kernel$", (WEIGHTS,)),
    ("modulation", r"modulation$", (None, WEIGHTS)),
    ("vectors", r"(bias|scale|gamma|latent_mean|latent_std|ns_coeffs|pool/query)$", ()),
)


def make(sizes: Mapping[str, int], devices: Sequence | None = None) -> Mesh:
    """The mesh of `sizes` (see KEYS; one may be -1) over all devices, or those given.

    Devices of several slices are laid out so that only `data` crosses from one to another.
    Raises InputError when the sizes do not multiply to the number of devices, context does not divide into rings, or
    slices are not whole.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {key: int(sizes[key]) for key in KEYS}
    spelled = ", ".join(f"{key}={value}" for key, value in sizes.items())
    free = [key for key, value in sizes.items() if value == -1]
    if len(free) > 1 or any(value < 1 for value in sizes.values() if value != -1) or sizes["ring"] == -1:
        raise InputError(f"the mesh {spelled} has sizes below 1: one of data, fsdp, context, tensor may be -1, no more")
    rest = math.prod(value for key, value in sizes.items() if key not in (*free, "ring"))
    if free and len(devices) % rest == 0:
        sizes[free[0]] = len(devices) // rest
    elif rest != len(devices) or free:
        raise InputError(f"the mesh {spelled} is of {rest} devices or a multiple, but there are {len(devices)}")
    if sizes["context"] % sizes["ring"]:
        raise InputError(f"mesh.context = {sizes['context']} does not divide into rings of mesh.ring = {sizes['ring']}")
    shape = (sizes["data"], sizes["fsdp"], sizes["ring"], sizes["context"] // sizes["ring"], sizes["tensor"])
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and sizes["data"] % slices:
        raise InputError(
            f"mesh.data = {sizes['data']} does not divide among {slices} slices, and only data crosses them"
        )
    if slices > 1:
        within = (sizes["data"] // slices, *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(
            within, (slices, 1, 1, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    # Auto axes: Linen's layers do not survive the Explicit ones that make_mesh gives by default
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def here() -> Mesh:
    """One of this process's devices alone, for what every process does by itself under a mesh of all."""
    return make(dict.fromkeys(KEYS, 1), jax.local_devices()[:1])


def on(mesh: Mesh, function: Callable) -> Callable:
    """The function, traced under the mesh: `shard` and attention know of it. To be jitted by the caller."""

    @functools.wraps(function)
    def traced(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def shard(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Pins how an activation is cut, dimension by dimension; without a mesh it is left as it is.

    An axis along which a dimension does not divide is left out: a batch of one row lies whole on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, fitting(x.shape, axes, dict(mesh.shape)))


def into(x: jax.Array, kernel: jax.Array, dimensions, **how) -> jax.Array:
    """`dot_general` of a Dense into heads or hidden features, whose kernel RULES cut along its first dimension."""
    return jax.lax.dot_general(x, _wide(kernel, (WEIGHTS, "tensor"), x.dtype), dimensions, **how)


def out_of(x: jax.Array, kernel: jax.Array, dimensions, **how) -> jax.Array:
    """`dot_general` of a Dense out of heads or hidden features, whose kernel RULES cut along its last dimension."""
    return jax.lax.dot_general(x, _wide(kernel, ("tensor", WEIGHTS), x.dtype), dimensions, **how)


def in_place(x: jax.Array, kernel: jax.Array, dimensions, **how) -> jax.Array:
    """`dot_general` of a Dense of few inputs, whose kernel RULES cut along its last dimension and which stays so: every
    device of a slice takes all of its inputs, and makes its own features of them."""
    rest = [None] * (x.ndim - 1)
    y = jax.lax.dot_general(shard(x, "data", *rest), shard(kernel, None, WEIGHTS), dimensions, **how)
    return shard(y, "data", *rest[1:], WEIGHTS)


def _wide(kernel, axes: tuple, dtype) -> jax.Array:
    """A kernel gathered for its product; one of 8 bits (`weights.quant`) is sent as such, and widened where it is used:
    an operand of the product alone, which compilers widen on the way into it."""
    if not hasattr(kernel, "qvalue"):
        return _gathered(kernel, axes)
    import qwix

    return qwix.dequantize(jax.tree.map(lambda w: _gathered(w, axes), kernel)).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(w: jax.Array, axes: tuple) -> jax.Array:
    """A weight as its product needs it: whole along WEIGHTS, first among those who share rows, then along fsdp.

    In one step a TPU's compiler pads the shards, which are few rows each, to the whole and adds them up: twice the
    bytes. The gradient goes back the same way, never whole on a device.
    """
    for kept in ("fsdp", None):
        w = shard(w, *(kept if axis == WEIGHTS else axis for axis in axes))
    return w


def _scattered(axes: tuple, _, gradient: jax.Array) -> tuple[jax.Array]:
    for kept in ("fsdp", WEIGHTS):
        gradient = shard(gradient, *(kept if axis == WEIGHTS else axis for axis in axes))
    return (gradient,)


_gathered.defvjp(lambda w, axes: (_gathered(w, axes), None), _scattered)


def fitting(shape: Sequence[int], axes: Sequence, sizes: Mapping[str, int]) -> PartitionSpec:
    """The spec of an array's last dimensions, each along those of its axes that divide it, in order."""
    spec: list = [None] * (len(shape) - len(axes))
    for n, wanted in zip(shape[len(spec) :], axes, strict=True):
        kept, parts = [], 1
        for axis in (wanted,) if isinstance(wanted, str) else wanted or ():
            if n % (parts * sizes[axis]) == 0:
                kept.append(axis)
                parts *= sizes[axis]
        spec.append(tuple(kept) or None)
    return PartitionSpec(*spec)


def frames(shape: Sequence[int], sizes: Mapping[str, int]) -> PartitionSpec:
    """How frames [b f h w c] are cut: clips along data and fsdp, then rows along the axes that are left.

    Columns instead of rows where more devices divide those. Asked of the latents' shape: what divides there divides at
    all sizes of a VAE, and one that is asked at two of them might answer differently.
    """
    (clips,) = fitting(shape[:1], (ROWS,), sizes)
    left = others(clips)
    rows, columns = (fitting((n,), (left,), sizes)[0] for n in shape[2:4])
    if math.prod(sizes[axis] for axis in left if axis not in others(rows)) >= math.prod(
        sizes[axis] for axis in left if axis not in others(columns)
    ):
        return PartitionSpec(clips, None, rows, None, None)
    return PartitionSpec(clips, None, None, columns, None)


def others(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The axes of a mesh that a dimension's part of a spec does not take."""
    taken = (axes,) if isinstance(axes, str) else axes or ()
    return tuple(axis for axis in AXES if axis not in taken)


def shard_frames(z: jax.Array) -> jax.Array:
    """Pins latents, or what is of their size, as `frames` cuts them; without a mesh they are left as they are."""
    mesh = jax.sharding.get_abstract_mesh()
    return z if mesh.empty else jax.lax.with_sharding_constraint(z, frames(z.shape, dict(mesh.shape)))


def claim(path: str) -> tuple[str, tuple] | None:
    """(name, axes) of the rule that claims the parameter at a path such as "dit/blocks/self/q/kernel"."""
    return next(((name, axes) for name, pattern, axes in RULES if re.search(pattern, path)), None)


def shardings(mesh: Mesh, state):
    """A NamedSharding for every array of a training state, or of any part of it, by RULES.

    Scalars and what is not of the model (step, key) are whole everywhere. Raises ValueError for a weight that no rule
    claims: a new module needs its line in the table.
    """
    sizes = dict(mesh.shape)

    def of(path, leaf) -> NamedSharding:
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        path = re.sub("kernel/(qvalue|scale)$", "kernel", path)  # of 8 bits: its steps are cut as its columns are
        if leaf.ndim == 0 or path.endswith("key"):
            return NamedSharding(mesh, PartitionSpec())
        claimed = claim(path)
        if claimed is None:
            raise ValueError(f"no rule of sora_jax/pod/mesh.py claims the weight {path}: add one to RULES")
        return NamedSharding(mesh, fitting(leaf.shape, claimed[1][-leaf.ndim :], sizes))

    return jax.tree_util.tree_map_with_path(of, state)


def placed(params):
    """Weights by module ({"dit": ...}) where the ambient mesh (`jax.set_mesh`) has them; without one, on a device."""
    mesh = jax.sharding.get_mesh()
    return jax.tree.map(jnp.asarray, params) if mesh.empty else jax.device_put(params, shardings(mesh, params))


def batch_sharding(mesh: Mesh, name: str, shape: Sequence[int]) -> NamedSharding:
    """How an array of a batch is cut: rows along data and fsdp, patches (BY_PATCH) along ring and ulysses too.

    Text follows its rows: it is short, and every patch of a row may want to read all of it.
    """
    axes = (ROWS, PATCHES) if name in BY_PATCH else (ROWS,)
    axes = (*axes, *[None] * (len(shape) - len(axes)))
    return NamedSharding(mesh, fitting(shape, axes, dict(mesh.shape)))


# ------------------------------------------------------------------------------------------------ several hosts


def readers(mesh: Mesh) -> tuple[int, int]:
    """(which, of how many) parts of every batch this process reads: `host` and `hosts` of `data.pipeline`.

    Processes whose devices hold the same rows (context or tensor across hosts) read the same part; parts never overlap.
    """
    count = mesh.shape["data"] * mesh.shape["fsdp"]
    rows: dict[int, set[int]] = {}
    for device, (span,) in NamedSharding(mesh, PartitionSpec(ROWS)).devices_indices_map((count,)).items():
        rows.setdefault(device.process_index, set()).add(span.indices(count)[0])
    parts = sorted({tuple(sorted(each)) for each in rows.values()})
    if sum(map(len, parts)) != count:
        return 0, 1  # processes share some rows and not others: everybody reads everything
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def place(mesh: Mesh, batch: Mapping[str, np.ndarray], hosts: int) -> dict[str, jax.Array]:
    """A batch, or this process's part of `hosts` equal ones, as arrays of the whole batch spread over the mesh.

    Raises InputError when several hosts' rows do not divide over the mesh.
    """
    if hosts == 1 and jax.process_count() == 1:
        return {name: jax.device_put(x, batch_sharding(mesh, name, x.shape)) for name, x in batch.items()}
    return {name: _place(mesh, name, np.asarray(x), hosts) for name, x in batch.items()}


def _place(mesh: Mesh, name: str, x: np.ndarray, hosts: int) -> jax.Array:
    shape = (len(x) * hosts, *x.shape[1:])
    if shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) and hosts > 1:
        raise InputError(
            f"a batch of {shape[0]} rows does not divide over mesh.data x mesh.fsdp = "
            f"{mesh.shape['data']} x {mesh.shape['fsdp']}, as it must on several hosts"
        )
    sharding = batch_sharding(mesh, name, shape)
    indices = sharding.addressable_devices_indices_map(shape).values()
    mine = sorted({index[0].indices(shape[0])[:2] for index in indices}) if hosts > 1 else [(0, shape[0])]
    # row of the whole batch -> row of x, which holds this process's spans one after the other
    at = dict(zip([i for start, stop in mine for i in range(start, stop)], range(len(x)), strict=True))

    def part(index):
        start, stop, _ = index[0].indices(shape[0])
        return x[at[start] : at[start] + stop - start][(slice(None), *index[1:])]

    return jax.make_array_from_callback(shape, sharding, part)
