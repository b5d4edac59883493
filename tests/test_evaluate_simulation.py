"""The probes of simulation: the truth passes them, a clip in which nothing happens or the wrong thing does not."""

import json

import numpy as np
import pytest

from sora_jax import cli
from sora_jax.data import worlds
from sora_jax.evaluate import probes

CASES = 6


def clips(probe: str):
    for case in range(CASES):
        scene = probes.scene_of(probe, case)
        yield scene, worlds.render(scene), probes.given(probe, scene)


def scores(probe: str, change) -> dict:
    return probes.mean([probes.PROBES[probe](change(frames, n), scene) for scene, frames, n in clips(probe)])


def still(frames, n):
    return np.concatenate([frames[:n], np.repeat(frames[n - 1 : n], len(frames) - n, 0)])


def backwards(frames, n):
    """Goes back to where it came from."""
    return np.concatenate([frames[:n], frames[n - 1 :: -1], np.repeat(frames[:1], len(frames), 0)])[: len(frames)]


@pytest.mark.parametrize("probe, measure", [("permanence", "after"), ("gravity", "right"), ("collision", "parted")])
def test_the_truth_passes_and_nothing_does_not(probe, measure):
    assert scores(probe, lambda frames, n: frames)[measure] == 1
    assert scores(probe, still)[measure] == 0
    assert scores(probe, backwards)[measure] == 0


def test_errors_are_small_for_the_truth():
    assert scores("permanence", lambda frames, n: frames)["place"] < 0.01
    assert scores("gravity", lambda frames, n: frames)["error"] < 0.05


def test_an_object_that_changes_is_not_the_same():
    scene, frames, n = next(clips("coherence"))
    assert probes.coherence(frames, scene) == {"same": 1}
    other = frames.copy()
    other[n:] = other[n:, :, :, ::-1]  # of another colour
    assert probes.coherence(other, scene)["same"] == 0 or scene.things[0].color in ("green", "magenta")


def test_a_fall_at_half_the_gravity_is_wrong_by_half():
    for scene, frames, _ in clips("gravity"):
        slow = frames[np.floor(np.arange(len(frames)) * np.sqrt(0.5)).astype(int)]
        assert probes.gravity(slow, scene)["error"] == pytest.approx(0.5, abs=0.15)


def test_objects_that_part_slower_than_they_came_have_lost_something():
    def slower(frames, n):
        at = np.arange(len(frames))
        return frames[np.where(at < 17, at, np.floor(17 + 0.6 * (at - 17))).astype(int)]

    assert scores("collision", lambda frames, n: frames)["conserved"] == 1
    found = scores("collision", slower)
    assert (found["both"], found["parted"], found["conserved"]) == (1, 1, 0)


@pytest.mark.slow
def test_the_command_says_what_the_bundled_model_does(capsys):
    assert cli.main(["evaluate", "simulation", "--cases", "1", "--steps", "2", "--seconds", "4"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(probes.PROBES) < told.keys()
    for probe in probes.PROBES:
        assert set(told[probe]) == {"model", "ceiling", "repeat"}
    assert cli.main(["evaluate", "simulation", "--probes", "nothing"]) == 2
