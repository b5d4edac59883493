"""Several processes that go one way, at their own pace.

What all of them run together they must begin together: collectives on CPUs (gloo) give up on a process that comes
30 s after the first, when a group of devices meets for the first time and in every reduce-scatter, and compiling can
take one process that much longer than another. JAX's coordinator, which these barriers use, waits as long as it is
told.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from orbax.checkpoint import multihost

PATIENCE = 3600  # seconds that a process may be behind the others; one that is gone is noticed by its heartbeat

_meetings = itertools.count()  # every process counts the same


def together() -> None:
    """Returns when every process is here; on its own a process need not wait. To be called by all, as often by each."""
    if jax.process_count() > 1:
        multihost.get_barrier_sync_fn()(key=f"together-{next(_meetings)}", timeout_ms=PATIENCE * 1000)


def joined(function: Callable) -> Callable:
    """A jitted function that no process runs on arguments of new shapes before all have compiled it for them."""
    if jax.process_count() == 1:
        return function
    programs: dict = {}

    def run(*args):
        leaves, tree = jax.tree.flatten(args)
        kind = (tree, *((jnp.shape(x), jnp.result_type(x)) for x in leaves))
        if kind not in programs:
            programs[kind] = function.lower(*args).compile()
            together()
        return programs[kind](*args)

    return run
