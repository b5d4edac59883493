"""Laws of measuring prompting: what must be exact is, the baselines are what they are, every task has its numbers."""

import json

import numpy as np
from PIL import Image
from test_model import model  # noqa: F401  (a random model with every part)

from sora_jax.data import worlds
from sora_jax.evaluate import prompting


def test_every_task_has_numbers_and_exact_things_are_exact(model, capsys, tmp_path):  # noqa: F811
    result = prompting.evaluate(model, cases=1, steps=2, out=tmp_path)
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1]) == result | {"cases": 1}
    assert Image.open(tmp_path / "sheet.png").width > 1000
    assert result.keys() == prompting.TASKS.keys()
    assert all(np.isfinite(value) for row in result.values() for value in row.values())
    kept = json.loads((tmp_path / "result.json").read_text())
    assert [row["group"] for row in kept["cases"]] == list(prompting.TASKS)
    assert result["backward"]["ending_exact"] == result["connect"]["ends_exact"] == 1.0
    assert result["backward"]["beginnings_differ"] > 0
    assert 0.9 < result["extend"]["velocity_error_repeat"] < 1.1  # what stands still misses all of the speed


def test_truth_has_no_velocity_error():
    scene = prompting.scene_of(3)
    frames = worlds.render(scene)
    true = np.diff(worlds.positions(scene)[0], axis=0).mean(0)
    found = prompting.velocity(prompting.main_object(frames, scene.things[0].color))
    np.testing.assert_allclose(found, true, atol=0.2)


def test_cases_are_held_out_and_go_straight():
    for case in range(8):
        scene = prompting.scene_of(case)
        assert worlds.held_out(scene.seed) and len(scene.things) == 1
        assert scene.things[0].motion == prompting.WAYS[case % 4] and scene.frames == prompting.FRAMES
