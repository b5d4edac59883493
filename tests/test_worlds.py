"""Laws of the embedded world: the same seed is the same clip, what is told is what is drawn, any frame fits."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from sora_jax.data import worlds
from sora_jax.data.drawing import COLORS, SHAPES
from sora_jax.data.wording import MOVES
from sora_jax.errors import InputError

SCENES = [worlds.sample(seed) for seed in range(400)]


def saturated(video):
    return video.max(-1).astype(int) - video.min(-1) > 45


def test_the_same_seed_is_the_same_clip():
    for seed in (0, 1, worlds.HELD_OUT + 3):
        a, b = worlds.sample(seed), worlds.sample(seed)
        assert a == b and worlds.captions(a) == worlds.captions(b)
        np.testing.assert_array_equal(worlds.render(a), worlds.render(b))
    assert len({json.dumps(asdict(scene)["things"]) for scene in SCENES}) == len(SCENES)
    assert not worlds.held_out(worlds.HELD_OUT - 1) and worlds.held_out(worlds.HELD_OUT)


def test_pixels_of_a_seed_stay_what_they_are():
    """A model and its evaluation share these pixels: whoever changes the world trains the bundled model again."""
    how = {"motion": "right", "count": 1, "background": "plain", "scale": "medium"}
    scene = worlds.sample(5, size=(96, 80), frames=9, **how)
    assert worlds.captions(scene)[0] == "a yellow square moves right"
    assert scene.things[0].diameter == pytest.approx(28.2318, abs=1e-3)
    assert scene.things[0].track[-1] == pytest.approx((63.5625, 39.6291, 1, 0), abs=1e-3)
    np.testing.assert_allclose(worlds.render(scene).mean((0, 1, 2)), (207.072, 217.050, 191.480), atol=0.02)


@pytest.mark.parametrize("size", [(16, 16), (33, 47), (128, 40), (321, 200)])
@pytest.mark.parametrize("frames", [1, 2, 12])
def test_any_size_and_length(size, frames):
    scene = worlds.sample(7, size=size, frames=frames, fps=23.976)
    video = worlds.render(scene)
    assert video.shape == (frames, size[1], size[0], 3) and video.dtype == np.uint8
    assert scene.fps == 23.976 and worlds.positions(scene).shape == (len(scene.things), frames, 2)


def test_native_sizes_and_variety():
    sides = {side for scene in SCENES for side in (scene.width, scene.height)}
    assert sides <= {32, 48, 64, 80, 96, 112, 128} and len(sides) == 7
    assert 0.8 < np.mean([scene.width * scene.height for scene in SCENES]) / 64**2 < 1.25
    assert {scene.frames for scene in SCENES} == {1, 9, 17, 33}
    seen = {thing.motion for scene in SCENES for thing in scene.things}
    assert seen | {"hide"} == set(worlds.MOTIONS)  # a pillar and room at both sides of it are rare by chance
    assert worlds.sample(0, size=(96, 64), motion="hide", count=1).things[0].motion == "hide"
    assert {scene.camera for scene in SCENES} == set(worlds.CAMERAS)
    assert {len(scene.things) for scene in SCENES} == {1, 2, 3}


def test_what_is_fixed_is_so():
    scene = worlds.sample(
        3,
        size=(96, 64),
        frames=9,
        color=("red", "blue"),
        shape=("star", None),
        motion=("left", "still"),
        texture="solid",
    )
    a, b = scene.things
    assert (a.color, a.shape, a.motion, b.color, b.motion) == ("red", "star", "left", "blue", "still")
    assert worlds.sample(4, size=(96, 96), frames=9, count=3, camera="pan right").camera == "pan right"
    assert worlds.sample(4, size=(64, 64), frames=9, event="collide").things[1].motion == "collide"


@pytest.mark.parametrize(
    "arguments",
    [
        {"colour": "red"},
        {"color": "mauve"},
        {"count": 4},
        {"size": (8, 64)},
        {"frames": 0},
        {"fps": 0},
        {"event": "collide", "count": 1},
        {"count": 3, "size": (16, 16)},
    ],
)
def test_a_wrong_wish_gets_one_sentence(arguments):
    with pytest.raises(InputError) as error:
        worlds.sample(0, **arguments)
    assert "\n" not in str(error.value)


def test_things_stay_in_the_frame_and_apart():
    for scene in SCENES:
        places, side = worlds.positions(scene), min(scene.width, scene.height)
        for i, thing in enumerate(scene.things):
            half, up, down, radius = (e * thing.diameter for e in SHAPES[thing.shape])
            scale = np.array(thing.track)[:, 2]
            assert (thing.diameter * scale).min() >= 9.5 and (thing.diameter * scale).max() <= 0.8 * side
            x, y = places[i].T
            assert (x - half * scale).min() > 0 and (x + half * scale).max() < scene.width
            assert (y - up * scale).min() > 0 and (y + down * scale).max() < scene.height
            for j in range(i if scene.event != "collide" else 0):
                reach = (
                    SHAPES[scene.things[j].shape][3] * scene.things[j].diameter * np.array(scene.things[j].track)[:, 2]
                )
                assert (np.hypot(*(places[i] - places[j]).T) >= radius * scale + reach + 1.9).all()


def test_straight_motions_go_where_they_say_and_far_enough():
    ways = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    for scene in SCENES:
        for thing, place in zip(scene.things, worlds.positions(scene)):
            if scene.frames > 1 and thing.motion in ways:
                move = (place[-1] - place[0]) / (scene.width, scene.height)
                assert move @ ways[thing.motion] >= 0.27 and np.abs(move @ ways[thing.motion][::-1]) < 1e-6


def test_positions_are_where_the_pixels_are():
    for scene in SCENES:
        if len(scene.things) == 1:
            shows = saturated(worlds.render(scene))
            for place, whole, mask in zip(worlds.positions(scene)[0], worlds.visible(scene)[0], shows):
                rows, cols = np.nonzero(mask)
                if whole:
                    np.testing.assert_allclose((cols.mean() + 0.5, rows.mean() + 0.5), place, atol=0.6)


def test_backgrounds_are_never_taken_for_objects():
    for seed in range(60):
        scene = worlds.sample(seed, size=(64, 64), frames=5)
        empty = worlds.render(replace(scene, things=()))
        assert (empty.max(-1).astype(int) - empty.min(-1)).max() < 32


def test_captions_are_true_and_short_enough():
    verbs = {verb for options in MOVES.values() for verb in options}
    for scene in SCENES:
        for text in worlds.captions(scene):
            low = text.lower()
            assert 2 <= len(text.split()) <= 60 and "{" not in text and "  " not in text
            for thing in scene.things:
                assert f"{thing.color} {thing.shape}" in low, (scene.seed, text)
            for color in set(COLORS) - {thing.color for thing in scene.things}:
                assert not any(f"{color} {shape}" in low for shape in SHAPES), (scene.seed, text)
            if scene.frames == 1:
                assert not any(verb in low for verb in verbs | {"camera", "view"}), text
            elif scene.camera == "still":
                assert not any(word in low for word in ("pans", "zooms")), text
            for thing in scene.things:
                if scene.frames > 1 and thing.motion == "left":
                    assert "left" in low


def test_clips_are_the_rendered_scenes_in_order():
    pytest.importorskip("tensorflow")
    seeds = [9, 2, 5]
    for seed, clip in zip(seeds, worlds.clips(seeds, frames=5).as_numpy_iterator(), strict=True):
        scene = worlds.sample(seed, frames=5)
        np.testing.assert_array_equal(clip["video"], worlds.render(scene))
        assert (clip["short"].decode(), clip["long"].decode()) == worlds.captions(scene)
