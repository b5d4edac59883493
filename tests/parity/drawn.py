"""Random weights and inputs that a fixture need not hold: drawn by name with numpy, the same here and there."""

import zlib

import numpy as np

SEED = 7


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal values, float32, which depend on the name and the shape alone."""
    return np.random.default_rng([SEED, zlib.crc32(name.encode())]).standard_normal(shape, np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A VAE's parameter: nothing is zero, one, or so large that the pixels leave [-1, 1], where peers clip them."""
    values = drawn(name, shape)
    if name.endswith("gamma"):
        return 1 + 0.1 * values
    return 0.1 * values if name.endswith("bias") else values * np.float32(0.5 / np.sqrt(np.prod(shape[1:])))
