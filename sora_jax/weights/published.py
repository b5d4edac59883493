"""The models of the Wan family that are published (Apache-2.0), as data: their transformers' sizes, and how they paint.

Sizes and settings are those of their configs (Wan 2.1: arXiv:2503.20314; Wan 2.2's own files). The text encoder is
umT5-xxl's for all of them; the VAEs are in `configs/vae.py`. Imports nothing, so that a config may read it.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """A model: fields of its DiT, its number of parameters, and how it paints.

    shift: of noise levels (diffusion/flow.py, equation 7).
    switch: the noise level from which on down a second transformer of the same size paints; 0: there is but one.
    """

    dit: dict
    parameters: int
    shift: float
    steps: int
    guidance: tuple[float, ...]  # of the first transformer, then of the second
    fps: float
    frames: int
    switch: float = 0.0


def _dit(width: int, depth: int, heads: int, mlp: int, channels: int = 16, given: int = 0) -> dict:
    return dict(width=width, depth=depth, heads=heads, mlp=mlp, channels=channels, given=given)


SMALL, LARGE, MIDDLE = (1536, 30, 12, 8960), (5120, 40, 40, 13824), (3072, 30, 24, 14336)
GIVEN = 20  # I2V of 2.2: 4 channels of mask and 16 of the picture's latents beside the 16 of noise
MODELS = {
    "wan-1.3b": Published(_dit(*SMALL), 1_418_996_800, 5.0, 50, (6.0,), 16.0, 81),
    "wan-14b": Published(_dit(*LARGE), 14_288_491_584, 5.0, 50, (5.0,), 16.0, 81),
    "wan-5b": Published(_dit(*MIDDLE, channels=48), 4_999_787_712, 5.0, 50, (5.0,), 24.0, 121),
    "wan-a14b": Published(_dit(*LARGE), 14_288_491_584, 12.0, 40, (4.0, 3.0), 16.0, 81, 0.875),
    "wan-a14b-i2v": Published(
        _dit(*LARGE, given=GIVEN), 14_288_901_184, 5.0, 40, (3.5, 3.5), 16.0, 81, 0.9
    ),
}  # fmt: skip

# umT5-xxl's encoder, of 5,680,910,336 parameters
TEXT = dict(vocab=256_384, width=4096, depth=24, heads=64, head_width=64, mlp=10_240, buckets=32, max_distance=128)
TEXT |= dict(bias_every_layer=True, dtype="bfloat16", rows=512, clean="wan")


def like(dit: dict, experts: int) -> Published:
    """The published model of a DiT's fields and number of experts; for another size, how the smallest one paints."""
    for model in MODELS.values():
        if all(dit[name] == value for name, value in model.dit.items()) and (model.switch > 0) == (experts > 1):
            return model
    return MODELS["wan-a14b" if experts > 1 else "wan-1.3b"]
