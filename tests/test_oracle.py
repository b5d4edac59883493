"""The oracle on rendered truth: it must be near perfect, also on what a codec blurs: it caps every score it gives."""

import numpy as np
import pytest

from sora_jax.data import worlds
from sora_jax.data.oracle import agrees, components, oracle


def blurred(video, sigma=0.7, noise=4.0):
    """A Gaussian blur of so many pixels and noise of so many grey levels."""
    tap = np.exp(-(np.arange(-3, 4) ** 2) / (2 * sigma**2))
    x = video.astype(np.float32)
    for axis in (1, 2):
        pad = [(3, 3) if i == axis else (0, 0) for i in range(4)]
        wide = np.pad(x, pad, mode="edge")
        x = sum(t * np.take(wide, range(i, i + x.shape[axis]), axis) for i, t in enumerate(tap / tap.sum()))
    return np.clip(x + np.random.default_rng(0).normal(0, noise, x.shape) + 0.5, 0, 255).astype(np.uint8)


def shares(seeds, change=lambda video: video):
    """The share of what the oracle read rightly, by kind."""
    found = {"color": [], "shape": [], "motion": [], "count": [], "camera": []}
    for seed in seeds:
        scene = worlds.sample(seed)
        for name, value in agrees(oracle(change(worlds.render(scene))), scene).items():
            if name != "motion" or scene.frames > 1:
                found[name] += value if isinstance(value, list) else [value]
    return {name: np.mean(values) for name, values in found.items()}


def test_it_reads_rendered_truth():
    found = shares(range(worlds.HELD_OUT + 1000, worlds.HELD_OUT + 1100))
    assert min(found.values()) >= 0.99, found


def test_it_reads_through_blur_and_noise():
    found = shares(range(worlds.HELD_OUT + 1100, worlds.HELD_OUT + 1160), blurred)
    assert min(found.values()) >= 0.97, found


@pytest.mark.slow
def test_it_reads_many():
    found = shares(range(worlds.HELD_OUT + 2000, worlds.HELD_OUT + 2500))
    assert min(found.values()) >= 0.99, found
    found = shares(range(worlds.HELD_OUT + 2000, worlds.HELD_OUT + 2500), blurred)
    assert min(found.values()) >= 0.97, found


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "star", "cross"])
def test_the_smallest_shapes_in_every_color(shape):
    for i, color in enumerate(worlds.COLORS):
        scene = worlds.sample(i, size=(32, 32), frames=1, count=1, shape=shape, color=color, scale="small")
        seen = oracle(worlds.render(scene)).objects
        assert [(o.color, o.shape) for o in seen] == [(color, shape)]


@pytest.mark.parametrize("motion", worlds.FIXED["motion"])
def test_every_motion_and_its_direction(motion):
    for seed in range(6):
        scene = worlds.sample(seed, size=(64, 48), frames=(9, 17, 33)[seed % 3], count=1, motion=motion)
        seen = oracle(worlds.render(scene)).objects
        assert len(seen) == 1 and seen[0].motion == motion
        if motion not in ("still", "grow", "shrink"):
            assert seen[0].way == scene.things[0].way


@pytest.mark.parametrize("camera", worlds.CAMERAS)
def test_every_camera(camera):
    for seed in range(3):
        scene = worlds.sample(seed, size=(80, 64), frames=9, camera=camera, motion="still")
        assert oracle(worlds.render(scene)).camera == camera


def test_it_is_not_flattered():
    """What is wrong is called wrong: another colour, another shape, another direction, one more, nothing at all."""
    fixed = dict(size=(64, 64), frames=9, count=1)
    asked = worlds.sample(1, color="red", shape="star", motion="left", **fixed)
    for change, wrong in (
        (dict(color="blue", shape="star", motion="left"), ("color", "shape", "motion")),
        (dict(color="red", shape="cross", motion="left"), ("shape",)),
        (dict(color="red", shape="star", motion="right"), ("motion",)),
    ):
        seen = agrees(oracle(worlds.render(worlds.sample(2, **change, **fixed))), asked)
        assert {k for k in ("color", "shape", "motion") if not all(seen[k])} == set(wrong) and seen["count"]
    both = worlds.sample(2, size=(64, 64), frames=9, color=("red", "blue"), shape="star", motion="left")
    assert not agrees(oracle(worlds.render(both)), asked)["count"]
    empty = agrees(oracle(np.full((9, 64, 64, 3), 128, np.uint8)), asked)
    assert not any(empty["color"] + empty["shape"] + empty["motion"]) and not empty["count"]
    noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
    assert not all(agrees(oracle(noise), asked)["shape"])
    twice = worlds.sample(3, size=(64, 64), frames=1, color=("red", "red"), shape=("star", "circle"))
    assert oracle(worlds.render(twice)).count == 2 and all(agrees(oracle(worlds.render(twice)), twice)["shape"])


def test_components_are_connected_regions():
    mask = np.random.default_rng(0).random((2, 17, 23)) < 0.6
    ids = components(mask)
    assert ((ids > 0) == mask).all() and not set(np.unique(ids[0])) & set(np.unique(ids[1])) - {0}
    across = mask[:, :, 1:] & mask[:, :, :-1]
    assert (ids[:, :, 1:] == ids[:, :, :-1])[across].all()
    for number in np.unique(ids[ids > 0]):  # each region can be walked from any of its pixels
        region = ids == number
        walk = np.zeros_like(region)
        walk[tuple(np.argwhere(region)[0])] = True
        while True:
            wide = walk.copy()
            wide[:, 1:] |= walk[:, :-1]
            wide[:, :-1] |= walk[:, 1:]
            wide[:, :, 1:] |= walk[:, :, :-1]
            wide[:, :, :-1] |= walk[:, :, 1:]
            wide &= region
            if (wide == walk).all():
                break
            walk = wide
        assert (walk == region).all()
