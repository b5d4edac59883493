"""The silhouette of one object in one frame: how much of every pixel it covers, and which shape that is."""

import numpy as np
from jaxtyping import Bool, Float, Int

from sora_jax.data.drawing import distance

SATURATED = 45  # max - min of a pixel's channels: backgrounds stay below 30, the darkest texture above 66
TILTED = 0.06  # error that a turned shape must spare: most stand upright
AREA = {"circle": 0.785, "square": 0.774, "triangle": 0.532, "star": 0.510, "cross": 0.677}  # of a unit diameter
SYMMETRY = {"square": 4, "triangle": 3, "star": 5, "cross": 4}


def saturation(rgb: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "..."]:
    """Largest channel minus smallest."""
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    return np.maximum(np.maximum(r, g), b) - np.minimum(np.minimum(r, g), b)


def surroundings(patch: Float[np.ndarray, "h w 3"], known: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """Fills unknown pixels with the nearest known ones along rows and columns, by inverse square distance."""
    total, weight = np.zeros_like(patch), np.full(known.shape, 1e-6, np.float32)
    for axis in (0, 1):
        n = known.shape[axis]
        line = np.arange(n).reshape((-1, 1) if axis == 0 else (1, -1))
        for backward in (False, True):
            last = np.where(known, line, n if backward else -1)
            if backward:
                last = np.flip(np.minimum.accumulate(np.flip(last, axis), axis), axis)
            else:
                last = np.maximum.accumulate(last, axis)
            found = (last >= 0) & (last < n)
            value = np.take_along_axis(patch, np.clip(last, 0, n - 1)[..., None], axis)
            near = found / np.maximum(np.abs(line - last), 1).astype(np.float32) ** 2
            total, weight = total + near[..., None] * value, weight + near
    return np.where(known[..., None], patch, total / weight[..., None])


def grow(mask: Bool[np.ndarray, "h w"], steps: int) -> Bool[np.ndarray, "h w"]:
    """The mask and what lies within so many steps of it."""
    for _ in range(steps):
        wide = np.pad(mask, 1)
        mask = wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    return mask


def coverage(image: Float[np.ndarray, "h w 3"], pixels: Int[np.ndarray, "n 2"]) -> Float[np.ndarray, "k j"]:
    """How much of every pixel around an object's pixels (row, column) the object covers.

    A pixel is share * behind + light * color; (share, light) by least squares, leaning to share + light = 1 because
    over black the two cannot be told apart.
    """
    rows, cols = pixels.T
    r0, c0 = max(rows.min() - 6, 0), max(cols.min() - 6, 0)
    patch = image[r0 : rows.max() + 7, c0 : cols.max() + 7]
    own = np.zeros(patch.shape[:2], bool)
    own[rows - r0, cols - c0] = True
    object_like = saturation(patch) > SATURATED
    b = surroundings(patch, ~grow(own | object_like, 2))
    inside = patch[own]
    chroma = saturation(inside)
    c = inside[chroma >= 0.8 * np.percentile(chroma, 90)].mean(0)
    lean = 4000.0  # a dark grey's energy: over white it does nothing
    bb, bc, cc = (b * b).sum(-1) + lean, b @ c + lean, c @ c + lean
    pb, pc = (patch * b).sum(-1) + lean, patch @ c + lean
    share = (pb * cc - pc * bc) / np.maximum(bb * cc - bc * bc, 1.0)
    return np.clip(1 - share, 0, 1) * grow(own, 2)


def compare(
    alpha: Float[np.ndarray, "k j"], shapes, turns: int = 8, tilted: float = TILTED
) -> dict[str, tuple[float, float]]:
    """For each shape the least squared error against a coverage, relative to its energy, and the angle (radians).

    `tilted` is added to the error of every angle but upright.
    """
    k = int(np.ceil(max(alpha.shape) / 34))
    if k > 1:  # large objects are read at about 30 pixels
        alpha = np.pad(alpha, [(0, -n % k) for n in alpha.shape])
        alpha = alpha.reshape(alpha.shape[0] // k, k, alpha.shape[1] // k, k).mean((1, 3))
    area = alpha.sum()
    y, x = (np.arange(n, dtype=np.float32) + 0.5 for n in alpha.shape)
    y, x = (y - (alpha.sum(1) @ y) / area)[:, None], (x - (alpha.sum(0) @ x) / area)[None]
    energy = (alpha**2).sum()
    scales = np.float32([0.94, 1.0, 1.06])[:, None, None]
    result = {}
    for shape in shapes:
        fold = SYMMETRY.get(shape)
        angles = np.arange(turns) * 2 * np.pi / fold / turns if fold else np.zeros(1)
        c, s = (g(angles).astype(np.float32)[:, None, None, None] for g in (np.cos, np.sin))
        d = np.sqrt(area / AREA[shape]) * scales
        away = distance(shape, c * x + s * y, c * y - s * x, d)
        errors = [
            ((np.clip(0.5 - away / soft, 0, 1) - alpha) ** 2).sum((-2, -1)).min(1) / energy
            for soft in (1.0, 2.0)  # a sharp edge, a blurred one
        ]
        errors = np.minimum(*errors)
        errors[1:] += tilted
        best = int(errors.argmin())
        result[shape] = (float(errors[best]), float(angles[best]))
    return result
