"""FLOPs of a traced step, of all devices together, counted in its jaxpr: a multiply and an add are 2.

    scan        its length times its body                          cond      its dearest branch
    shard_map   one device's work times the devices                while     once, unless the caller knows better
    pallas      its own estimate where it has one; else the products in its body times its grid, where a dimension that
                is known only at run time counts as the schedule it is given can hold

What is recomputed in the backward pass stands in the jaxpr and counts. Only products of matrices (and convolutions)
count, as in every published figure of model FLOPs.
"""

from __future__ import annotations

import math
from collections import Counter

PRODUCTS = {"dot_general": "matmul", "conv_general_dilated": "convolution"}
# what is wrapped around products in attention written without a kernel: see `models.kernels`
ATTENTION = ("bqnk,bjnk->bnqj", "bnqj,bjnk->bqnk", "nck,ndk->ncd", "ncd,ndk->nck", "ncd,nck->ndk")


def count(jaxpr, devices: int) -> Counter:
    """FLOPs by kind: 'matmul', 'convolution', 'attention' (kernels, and einsums of scores), 'attention backward'.

    jaxpr: of `jit(f).trace(...)`; devices: of its mesh, all of which a shard_map spans.
    """
    total: Counter = Counter()
    _walk(getattr(jaxpr, "jaxpr", jaxpr), 1, devices, total)
    return total


def _walk(jaxpr, times: int, devices: int, total: Counter) -> None:
    for equation in jaxpr.eqns:
        name, of = equation.primitive.name, equation.params
        if name in PRODUCTS:
            total[_kind(equation)] += times * _product(equation)
        elif name == "pallas_call":
            for kind, flops in kernel(equation).items():
                total[kind] += times * flops
        elif name == "scan":
            _walk(of["jaxpr"].jaxpr, times * of["length"], devices, total)
        elif name == "shard_map":
            _walk(getattr(of["jaxpr"], "jaxpr", of["jaxpr"]), times * devices, 1, total)
        elif name == "cond":
            counts = []
            for branch in of["branches"]:
                counts.append(Counter())
                _walk(branch.jaxpr, times, devices, counts[-1])
            total.update(max(counts, key=lambda each: sum(each.values())))
        else:
            for inner in _inner(of):
                _walk(inner, times, devices, total)


def _inner(params: dict):
    """The jaxprs among an equation's parameters; of a rule for gradients only the function itself."""
    for key, value in params.items():
        if key in ("cond_jaxpr", "fwd_jaxpr_thunk", "jvp_jaxpr_fun", "bwd"):
            continue
        for each in value if isinstance(value, tuple | list) else (value,):
            each = getattr(each, "jaxpr", each)
            if hasattr(each, "eqns"):
                yield each


def _product(equation) -> float:
    out = equation.outvars[0].aval.shape
    left, right = (v.aval.shape for v in equation.invars[:2])
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2.0 * math.prod(out) * math.prod(left[i] for i in contracted)
    kernel = equation.params["dimension_numbers"].rhs_spec  # (features out, features in, *space)
    return 2.0 * math.prod(out) * math.prod(right[i] for i in kernel[1:])


def _kind(equation) -> str:
    kind = PRODUCTS[equation.primitive.name]
    stack = str(equation.source_info.name_stack)
    return "attention" if any(each.replace(" ", "") in stack for each in ATTENTION) else kind


def kernel(equation) -> Counter:
    """FLOPs of one call of a Pallas kernel on one device."""
    of = equation.params
    name = str(of.get("name") or of.get("name_and_src_info", ""))
    kind = "attention backward" if any(word in name for word in ("dkv", "dq", "bwd")) else "attention"
    estimate = of.get("cost_estimate")
    if estimate is not None and estimate.flops:
        return Counter({kind: float(estimate.flops)})
    body: Counter = Counter()
    _walk(of["jaxpr"], 1, 1, body)
    scheduled = [v.aval.shape[0] for v in equation.invars if v.aval.ndim == 1 and v.aval.dtype.kind == "i"]
    grid = [n if isinstance(n, int) else max(scheduled, default=1) for n in of["grid_mapping"].grid]
    return Counter({kind: math.prod(grid) * float(sum(body.values()))})
