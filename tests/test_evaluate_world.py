"""Laws of the evaluation: truth scores 1, a model is asked for exactly what its scenes are, lies are found out."""

import json

import numpy as np
import pytest

from sora_jax.data import worlds
from sora_jax.errors import InputError
from sora_jax.evaluate import results, world
from sora_jax.media import Video

FIRST = worlds.HELD_OUT + 5000


class Perfect:
    """Renders the scene of every prompt and loses nothing in its latents: what a perfect model would score."""

    def __init__(self, scenes):
        self.scenes = dict(zip(world.prompts(scenes), scenes, strict=True))

    def encode(self, video):
        return video.frames

    def decode(self, z):
        return Video(z, 8.0)

    def generate(self, prompt, *, size, frames, seed, steps, solver, guidance):
        videos = []
        for text, (w, h), f in zip(prompt, size, frames, strict=True):
            scene = self.scenes[text]
            assert (w, h, f) == (scene.width, scene.height, scene.frames)
            videos.append(Video(self.show(scene), scene.fps))
        return videos

    def show(self, scene):
        return worlds.render(scene)


class Backwards(Perfect):
    """Runs every clip from its end to its beginning."""

    def show(self, scene):
        return worlds.render(scene)[::-1]


class Lucky(Perfect):
    """Paints what was asked for in its third try alone."""

    def generate(self, prompt, *, size, frames, seed, **how):
        videos = super().generate(prompt, size=size, frames=frames, seed=seed, **how)
        if seed >= 2 * world.APART:
            return videos
        others = [worlds.sample(1 + i, size=wh, frames=f, count=1) for i, (wh, f) in enumerate(zip(size, frames))]
        return [Video(self.show(scene), scene.fps) for scene in others]


@pytest.fixture(scope="module")
def scenes():
    return [worlds.sample(FIRST + i) for i in range(30)]


def test_truth_scores_one(scenes, capsys):
    result = world.evaluate(Perfect(scenes), seeds=30, first=FIRST, batch=7)
    for name in world.SCORES:
        assert result[name] == result["ceiling"][name] == result["truth"][name]
        assert result[name] is None or result[name] >= 0.95, (name, result[name])
    out = capsys.readouterr().out.strip().splitlines()
    assert json.loads(out[-1]) == json.loads(json.dumps(result)) and "ceiling" in "\n".join(out[:-1])
    assert sum(group["clips"] for group in result["by"]["size"].values()) == 30


def test_backwards_is_the_wrong_direction(scenes, capsys, tmp_path):
    result = world.evaluate(Backwards(scenes), seeds=30, first=FIRST, quiet=True, out=tmp_path / "backwards")
    assert result["direction"] == 0 and result["color"] >= 0.95 and result["truth"]["direction"] >= 0.95
    assert len(capsys.readouterr().out.strip().splitlines()) == 1
    world.evaluate(Perfect(scenes), seeds=30, first=FIRST, quiet=True, out=tmp_path / "perfect")
    assert "Perfect" in results.read(tmp_path / "perfect")["model"]
    found = results.compare(tmp_path / "backwards", tmp_path / "perfect")["scores"]
    assert found["direction"]["a"] == 0 and found["direction"]["low"] > 0.9
    assert found["color"]["low"] <= 0 <= found["color"]["high"]
    assert (tmp_path / "perfect/index.html").read_text().count("<video") > 30  # each with its truth


def test_the_best_of_three_is_the_right_one(scenes):
    """A captioner chooses by the pixels and the prompt alone."""
    once = world.evaluate(Lucky(scenes), seeds=12, first=FIRST, quiet=True)
    best = world.evaluate(Lucky(scenes), seeds=12, first=FIRST, quiet=True, best=3)
    assert once["shape"] < 0.5 < 0.9 < best["shape"] and best["count"] > 0.9 > once["count"]


def test_scenes_have_in_common_what_is_asked_of_them_or_are_skipped():
    many = list(world.held_out(range(FIRST, FIRST + 40), 1, {"count": 3, "scale": "large"}))
    assert 0 < len(many) < 40
    assert all(len(s.things) == 3 and {t.scale for t in s.things} == {"large"} and s.frames == 1 for s in many)
    alone = worlds.sample(FIRST, frames=1, count=1)
    result = world.evaluate(Perfect([alone]), seeds=1, first=FIRST, frames=1, scene={"count": 1}, quiet=True)
    assert (result["shape"], result["seeds"], result["scene"]) == (1.0, 1, {"count": 1})
    with pytest.raises(InputError, match="weather"):
        world.evaluate(None, seeds=1, scene={"weather": "rain"})


def test_prompts_are_the_captions_of_training(scenes):
    texts = world.prompts(scenes)
    assert all(text in worlds.captions(scene) for text, scene in zip(texts, scenes))
    assert all(worlds.held_out(scene.seed) for scene in scenes) and len(set(texts)) == len(texts)
    assert np.mean([len(text.split()) for text in texts[::2]]) < np.mean([len(text.split()) for text in texts[1::2]])


def test_a_mirrored_clip_has_left_and_right_wrong_and_above_and_below_right():
    scenes = [worlds.sample(FIRST + i) for i in range(80)]
    asked = [(s, text) for s, text in zip(scenes, world.prompts(scenes)) if world.RELATION.search(text)]
    assert len(asked) > 10
    for scene, text in asked[:16]:
        frames = worlds.render(scene)
        assert world.judge(frames, scene, text)["relation"] == [True], text
        upright = world.beside(scene.things) in ("above", "below")
        assert world.judge(frames[:, :, ::-1], scene, text)["relation"] == [upright], text
    alone = next(scene for scene in scenes if len(scene.things) == 1)
    assert world.judge(worlds.render(alone), alone, "a red circle starts on the left and moves right")["relation"] == []


def test_what_the_edge_cuts_is_not_in_view():
    for seed in range(FIRST, FIRST + 8):
        scene = worlds.sample(seed, count=1, frames=1, size=(64, 64), texture="solid", scale="large")
        frames = worlds.render(scene)
        assert world.judge(frames, scene, "")["framing"] == [True]
        middle = int(worlds.positions(scene)[0, 0, 0])
        assert world.judge(frames[:, :, middle - 4 :], scene, "")["framing"] == [False]
