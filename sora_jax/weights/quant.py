"""A transformer's and a text encoder's large matrices in 8 bits: half the memory of bfloat16, for sampling.

A layer's matrix [in out] is kept as whole numbers (int8) or small floats (float8_e4m3) and one float32 step a column:

    W ~ q * step,    step_j = max_i |W_ij| / (largest q)                                                       (1)

which is symmetric, per output channel and per layer. qwix makes q and takes it back; its own way into a Flax module is
not used, for it gives all layers of an `nn.scan` one step. In memory it is a `qwix.QArray` where the kernel would be:
the scan gives each layer its slice, and only there, right before the product, it becomes as wide as the activations are
(`pod.mesh.into`). Norms, biases, modulation, embeddings, the maps at the ends and the VAE stay as they are.

On disk it is `.../kernel` as I8 and `.../kernel_scale` [layers 1 out] as F32.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sora_jax.errors import InputError

KINDS = {"int8": jnp.int8, "float8": jnp.float8_e4m3fn}
PARTS = ("text", "dit", "dit_low")
MATRICES = re.compile(r"blocks/((self|cross)/[qkvo]|mlp_up|mlp_down|[qkvo]|gate|up|down)/kernel")
STEP = "_scale"  # behind the name of a kernel in a file


def library():
    """qwix. Raises InputError where it is not installed."""
    try:
        import qwix
    except ImportError:
        raise InputError('weights in 8 bits need qwix: pip install "sora_jax[quant]"') from None
    return qwix


def small(leaf) -> bool:
    """Whether it is a matrix in 8 bits."""
    return hasattr(leaf, "qvalue")


def quantised(leaves: Mapping, kind: str) -> dict:
    """Parameters by their paths, the matrices (see MATRICES) in 8 bits, one layer after the other on the device.

    kind: one of KINDS. Raises InputError for another one, and for matrices that are in 8 bits of another kind already.
    """
    if kind not in KINDS:
        raise InputError(f"quant is {kind!r}; choose one of {', '.join(KINDS)}")
    qwix, leaves = library(), dict(leaves)
    narrow = jax.jit(lambda w: qwix.quantize(w.astype(jnp.float32), KINDS[kind], channelwise_axes=(1,)))
    for path, leaf in leaves.items():
        if small(leaf) and leaf.qvalue.dtype != KINDS[kind]:
            raise InputError(f"{path} is in {leaf.qvalue.dtype} already: take the model that it was made of for {kind}")
        if small(leaf) or not MATRICES.fullmatch(path):
            continue
        values = np.empty(leaf.shape, KINDS[kind])
        steps = np.empty((len(leaf), 1, leaf.shape[-1]), np.float32)
        for i, layer in enumerate(leaf):
            made = narrow(jnp.asarray(layer))
            values[i], steps[i] = made.qvalue, made.scale
        leaves[path] = qwix.QArray(values, steps)
    return leaves


def lost(before: Mapping[str, Array], after: Mapping) -> float:
    """What 8 bits cost of the matrices: the root of the error's squares over the root of the values' squares."""
    error = whole = 0.0
    for path, leaf in after.items():
        for i in range(len(leaf.qvalue) if small(leaf) else 0):
            w = np.asarray(before[path][i], np.float32)
            error += float(np.square(np.asarray(leaf.qvalue[i], np.float32) * leaf.scale[i] - w).sum(dtype=np.float64))
            whole += float(np.square(w).sum(dtype=np.float64))
    return float(np.sqrt(error / whole)) if whole else 0.0


# ------------------------------------------------------------------------------------------------ files


def split(leaves: Mapping) -> dict[str, Array]:
    """Every array of parameters by its name in a file. Raises InputError for float8, which a folder does not hold."""
    arrays = {}
    for path, leaf in leaves.items():
        if small(leaf) and leaf.qvalue.dtype != np.int8:
            raise InputError(f"{path} is in {leaf.qvalue.dtype}: a model folder holds int8, or nothing of 8 bits")
        arrays |= {path: leaf.qvalue, path + STEP: leaf.scale} if small(leaf) else {path: leaf}
    return arrays


def steps(shapes: Mapping, arrays: Mapping[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the steps that the matrices of 8 bits among a file's arrays need beside them."""
    return {
        path + STEP: jax.ShapeDtypeStruct((*shape.shape[:-2], 1, shape.shape[-1]), jnp.float32)
        for path, shape in shapes.items()
        if MATRICES.fullmatch(path) and path in arrays and arrays[path].dtype == np.int8
    }


def joined(arrays: Mapping[str, np.ndarray]) -> dict:
    """The inverse of `split`."""
    found = {path.removesuffix(STEP) for path in arrays if path.endswith("/kernel" + STEP)}
    whole = {path: array for path, array in arrays.items() if path.removesuffix(STEP) not in found}
    return whole | {path: library().QArray(arrays[path], arrays[path + STEP]) for path in found}


def export(model: str | os.PathLike, out: str | os.PathLike) -> dict:
    """Writes a model folder with its matrices in int8 as another; says how large both are and what it cost (`lost`).

    Raises InputError when there is no model, it has no transformer, or `out` holds something else.
    """
    from sora_jax.model import find, flat, load, unflat

    made, errors = load(model, host=True), {}
    for part in PARTS:
        if part in made.params:
            before = flat(made.params[part])
            after = quantised(before, "int8")
            errors[part] = round(lost(before, after), 6)
            made.params[part] = unflat(after)
    if not errors:
        raise InputError(f"{model} holds no transformer: there is nothing to keep in int8")
    made.save(out, None)
    size = lambda folder: sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    return {"path": str(out), "bytes": size(out), "bytes_before": size(find(model)), "relative_error": errors}
