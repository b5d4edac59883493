"""The stages beside the world, and what the probes of simulation say: the truth passes, a broken rule does not."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from sora_jax.data import stages
from sora_jax.errors import InputError
from sora_jax.evaluate import probes

KINDS = tuple(stages.KINDS)
CASES, FEW = 20, 5


@cache
def case(kind: str, i: int):
    stage = probes.scene_of(kind, i)
    return stage, probes.shown(stage)[0].frames


def scores(kind: str, change, cases: int = FEW) -> dict:
    """The mean over the cases; change(frames, stage) gives what is looked at."""
    found = [(stage, change(frames.copy(), stage)) for stage, frames in (case(kind, i) for i in range(cases))]
    return probes.mean([probes.PROBES[kind](frames, stage) for stage, frames in found])


def still(frames, stage):
    frames[stage.given :] = frames[stage.given - 1]
    return frames


def moved(stage, thing: int, change) -> np.ndarray:
    """The frames when one thing takes another way behind the given ones; change(track [f 4], n) in place."""
    track = np.array(stage.scene.things[thing].track)
    change(track, stage.given)
    things = list(stage.scene.things)
    things[thing] = replace(things[thing], track=tuple(map(tuple, track)))
    return stages.render(replace(stage, scene=replace(stage.scene, things=tuple(things))))


# ------------------------------------------------------------------------------------------------ the stages


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_a_stage_bit_for_bit(kind):
    (stage, frames), (other, _) = case(kind, 0), case(kind, 1)
    assert stages.sample(kind, stage.scene.seed) == stage != other
    assert (stages.render(stage) == frames).all() and frames.shape == (33, 64, 96, 3)
    assert stage.given % 4 == 1
    assert "{0.color} {0.shape}".format(stage.scene.things[-1]) in stage.caption


def test_there_is_no_other_stage():
    with pytest.raises(InputError, match="no stage 'chess'"):
        stages.sample("chess", 0)


def test_a_camera_that_circles_sees_near_things_pass_far_ones():
    near, far, middle = stages.view(np.array([[0, 0, 30.0], [0, 0, -30.0], [0, 0, 0]]), np.array([0.0, 0.1, 2 * np.pi]))
    assert near[0, 2] > middle[0, 2] == 1 > far[0, 2]
    assert near[1, 0] - near[0, 0] > far[0, 0] - far[1, 0] > 0  # against each other, the near one faster
    assert near[0, 1] > middle[0, 1] == 32 > far[0, 1]  # seen from above
    np.testing.assert_allclose(near[2], near[0], atol=1e-9)


def test_the_ball_turns_back_at_walls_and_where_the_player_is():
    things = case("game", 0)[0].scene.things
    left, _, top, floor, reach = stages.court(things)
    told = {
        ((left + 1, 30), (-3, 0), 0): (left + 2, 30, 3, 0),
        ((40, top + 1), (0, -3), 0): (40, top + 2, 0, 3),
        ((40, floor - 1), (0, 3), 40 + reach - 1): (40, floor - 2, 0, -3),
        ((40, floor - 1), (0, 3), 40 + reach + 1): (40, floor + 2, 0, 3),
    }
    for (ball, speed, player), then in told.items():
        place, speed = stages.fly(ball, speed, player, things)
        assert (*place, *speed) == pytest.approx(then)
    steps = [stages.run_after(10, x) - 10 for x in (50, 11, 2)]
    assert steps == [stages.PACE, 1, -stages.PACE]


# ------------------------------------------------------------------------------------------------ the probes


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_passes_and_its_last_given_frame_repeated_does_not(kind):
    true = scores(kind, lambda frames, stage: frames, CASES)
    assert min(value for name, value in true.items() if name != "error") >= 0.95
    assert true.get("error", 0) < 0.1
    assert scores(kind, still)["right"] == 0


def test_one_object_against_the_camera_is_not_explained_by_it():
    def against(frames, stage):
        turned = 2 * stage.angles[stage.given - 1] - np.array(stage.angles)

        def change(track, n):
            track[n:, :3] = stages.view(np.array(stage.places[:1]), turned[n:])[0]

        return moved(stage, 0, change)

    assert scores("parallax", against) == {"right": 0, "error": pytest.approx(0.7, abs=0.3)}


def test_a_camera_that_goes_back_is_one_camera_but_not_the_right_one():
    back = lambda frames, stage: np.concatenate([frames[: stage.given], frames[stage.given - 1 :: -1]])
    found = scores("parallax", back)
    assert found["right"] == 0 and found["error"] < 0.2


def test_a_line_that_vanishes_is_not_kept():
    def forget(whole):
        def change(frames, stage):
            line = probes.of_color(frames, stage.scene.things[0].color)
            gone = line[24:] & (whole | line[stage.given - 1])
            frames[24:][gone] = frames[0, 0, 0]
            return frames

        return change

    assert scores("stroke", forget(True)) == {"right": 0, "kept": pytest.approx(0, abs=0.1)}
    assert scores("stroke", forget(False)) == {"right": 0, "kept": pytest.approx(0.75, abs=0.12)}


def test_a_bite_that_heals_is_not_kept_and_what_vanishes_was_not_bitten():
    def heal(frames, stage):
        whole = probes.of_color(frames[:1], stage.scene.things[0].color)[0]
        frames[stage.given :, whole] = frames[0, whole]
        return frames

    def vanish(frames, stage):
        frames[stage.given :][probes.of_color(frames[stage.given :], stage.scene.things[0].color)] = frames[0, 0, 0]
        return frames

    assert scores("bite", heal) == {"right": 0, "kept": pytest.approx(0, abs=0.1)}
    assert scores("bite", vanish)["right"] == 0


def test_a_ball_that_ignores_the_player_breaks_the_rules_of_the_world():
    def falls(frames, stage):
        def change(track, n):
            down = np.diff(track[:, 1]) > 0
            hit = n + int(np.flatnonzero(down[n - 1 : -1] & ~down[n:])[0])  # the last frame on its way down
            on = track[hit, 1] + abs(stage.speed[1]) * np.arange(len(track) - hit)
            track[hit:, 1] = np.minimum(on, stage.scene.height + 7)

        return moved(stage, 0, change)

    found = scores("game", falls)
    assert found["right"] == 0 and found["world"] < 0.7


def test_a_player_that_runs_away_breaks_the_rules_of_the_player():
    def flees(frames, stage):
        def change(track, n):
            track[n:, 0] = np.clip(2 * track[n - 1, 0] - track[n:, 0], 10, 86)

        return moved(stage, 1, change)

    found = scores("game", flees)
    assert found["right"] == 0 and found["player"] < 0.5
