"""Datasets of latents: each clip at its own size, in the order of its dataset, whatever is killed."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from sora_jax import media
from sora_jax.data import dataset, fitting, worlds
from sora_jax.errors import InputError
from sora_jax.train import configs, tasks
from tests.datasets import kill_when, moving, shards_of, start

pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def model():
    import jax

    from sora_jax.model import Model, shapes_of

    tiny = Model({"vae": {"width": 4, "multipliers": [1, 1, 1, 1], "blocks": 1, "channels": 3}}, {})
    rng = np.random.default_rng(0)  # random weights, without compiling an initialiser
    draw = lambda leaf: rng.normal(0.3, 0.2, leaf.shape).astype(np.float32)
    tiny.params["vae"] = jax.tree.map(draw, shapes_of(tiny)["vae"])
    return tiny


@pytest.fixture(scope="module")
def small_clips(tmp_path_factory) -> Path:
    """Everything of 16x16 cells, so that little is compiled, behind odd sizes and lengths; and one image too small."""
    root = tmp_path_factory.mktemp("small")
    for i, (f, h, w) in enumerate([(5, 17, 19), (1, 16, 23), (8, 22, 16), (1, 7, 40), (6, 16, 16)]):
        video = moving(f, h, w)
        video.save(root / f"{i}.png" if f == 1 else root / f"{i}.mp4")
        (root / f"{i}.json").write_text(json.dumps([f"clip {i}", f"clip {i} at greater length"]))
    dataset.build(root, root / "out")
    return root / "out"


def test_latents_keep_native_sizes(small_clips, model, tmp_path):
    report = dataset.latents(small_clips, model, tmp_path / "z", shard_size=2)
    assert report["records"] == 4 and "40x7 is smaller than one cell" in report["skipped"][0]["reason"]
    rows = {row["name"]: row for row in dataset.open_latents(tmp_path / "z")}
    clips = {row["name"]: row for row in dataset.open_clips(small_clips)}
    assert {name: row["z"].shape for name, row in rows.items()} == {
        "0.mp4": (2, 2, 2, 3), "1.png": (1, 2, 2, 3), "2.mp4": (2, 2, 2, 3), "4.mp4": (2, 2, 2, 3)
    }  # fmt: skip
    for name, row in rows.items():
        assert row["z"].dtype == np.float32
        expected = model.encode(media.decode(clips[name]["media"])).astype(np.float16)  # it crops in the same way
        np.testing.assert_array_equal(row["z"], expected)
        assert (row["width"], row["height"]) == (16, 16) and row["frames"] == 1 + 4 * (len(row["z"]) - 1)
        assert row["caption_short"] == f"clip {name[0]}" and row["caption_long"].endswith("length")
        assert row["caption_original"] == clips[name]["caption"]
    assert report["largest"] == [2, 2, 2] and list(dataset.open_latents(tmp_path / "z").largest.values()) == [[2, 2, 2]]
    import tensorflow_datasets as tfds

    theirs = tfds.builder_from_directory(tmp_path / "z").as_data_source(split="train")[0]
    np.testing.assert_array_equal(theirs["z"], rows[theirs["name"].decode()]["z"].astype(np.float16))


def test_training_says_at_once_what_no_row_can_hold(small_clips, model, tmp_path):
    dataset.latents(small_clips, model, tmp_path / "z")
    told = ["data.path=world", f"data.held_out={tmp_path / 'z'}", "dit.channels=3", "data.row=7"]
    with pytest.raises(InputError, match=r"z holds a clip of 2x2x2 latents .* 8 patches do not fit into a row of 7"):
        tasks.make(configs.read("configs/dit.py:smoke", told)).batches(None, 0, 1)


def test_large_footage_is_never_in_memory_at_its_own_size(tmp_path):
    (tmp_path / "clips").mkdir()
    video = moving(60, 240, 320)
    video.save(tmp_path / "clips" / "a.mp4")
    dataset.build(tmp_path / "clips", tmp_path / "out")
    held = dataset.open_clips(tmp_path / "out")
    whole = media.decode(held[0]["media"])
    tracemalloc.start()
    small, *_ = dataset._from_clips(held, None, None, 64 * 48, True, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < whole.frames.nbytes / 3 and small.fps == whole.fps
    np.testing.assert_array_equal(small.frames, fitting.fit(fitting.middle(whole), (1, 1, 1), 64 * 48).frames)


def test_only_larger_frames_shrink():
    video = moving(7, 50, 90)
    same = fitting.fit(video, (4, 8, 8), 50 * 90)
    np.testing.assert_array_equal(same.frames, video.frames[:5, 1:49, 1:89])
    less = fitting.fit(video, (4, 8, 8), 1000)
    assert less.frames.shape == (5, 16, 40, 3) and less.height * less.width <= 1000
    wide = fitting.middle(video)
    np.testing.assert_array_equal(wide.frames, video.frames[:, :, 20:70])
    assert fitting.middle(wide).frames.shape == wide.frames.shape
    with pytest.raises(InputError, match="6x3 is smaller than one cell"):
        fitting.fit(video, (4, 8, 8), 24)


def test_latents_of_one_kind_of_scene(model, tmp_path):
    """`--scene` fixes what all scenes have in common, and says so of a word that the world does not know."""
    how = dict(model=model, clips=6, seed=3, max_frames=1, shard_size=10**6)
    dataset.latents("world", out=tmp_path / "z", scene={"count": 1, "shape": "star"}, **how)
    told = [record["caption_short"] for record in dataset.open_latents(tmp_path / "z")]
    assert len(told) == 6 and all("star" in text and " and " not in text for text in told)
    dataset.latents("world", out=tmp_path / "more", scene={"shape": "cross"}, **how | {"clips": 2})
    both = [record["caption_short"] for record in dataset.open_latents(tmp_path / "z", tmp_path / "more")]
    assert both[:6] == told and len(both) == 8 and all("cross" in text for text in both[6:])
    small = next(s.seed for s in map(worlds.sample, range(1000)) if (s.width, s.height) == (32, 32))
    three = dataset.latents("world", out=tmp_path / "three", scene={"count": 3}, **how | {"clips": 4, "seed": small})
    assert three["records"] and three["skipped"]  # a frame too small for three is no reason to stop
    with pytest.raises(InputError, match="count cannot be 7"):
        dataset.latents("world", out=tmp_path / "no", scene={"count": 7}, **how)
    assert not (tmp_path / "no").exists()


def test_latents_of_the_world(model, tmp_path):
    scenes = map(worlds.sample, range(1000))
    scene = next(s for s in scenes if (s.width, s.height) == (32, 32) and s.frames < 17)
    seed = scene.seed
    dataset.latents("world", model, tmp_path / "z", clips=1, seed=seed)
    (row,) = dataset.open_latents(tmp_path / "z")
    assert (row["width"], row["height"], row["frames"]) == (scene.width, scene.height, scene.frames)
    assert (row["caption_short"], row["caption_long"]) == worlds.captions(scene)
    assert row["caption_original"] == row["caption_long"]
    assert row["name"] == f"world/{seed}" and row["z"].shape[1:] == (4, 4, 3)
    with pytest.raises(InputError, match="clips=1, not 2"):
        dataset.latents("world", model, tmp_path / "z", clips=2, seed=seed)
    with pytest.raises(InputError, match="say how many"):
        dataset.latents("world", model, tmp_path / "y")
    with pytest.raises(InputError, match="not a model folder"):
        dataset.latents("world", tmp_path / "nowhere", tmp_path / "y", clips=1)
    with pytest.raises(InputError, match="a dataset of latents, where one of clips"):
        dataset.open_clips(tmp_path / "z")


@pytest.mark.slow
def test_latents_killed_and_run_again(model, tmp_path):
    root = tmp_path / "clips"
    root.mkdir()
    for i in range(60):
        media.Video(moving(5, 16, 16).frames[:, :, ::-1] + np.uint8(i), 8).save(root / f"{i:02}.mp4")
    dataset.build(root, tmp_path / "built")
    model.save(tmp_path / "model")
    code = "dataset.latents(*sys.argv[1:], shard_size=1)"
    kill_when(start(code, tmp_path / "built", tmp_path / "model", tmp_path / "z"), tmp_path / "z", 4)
    dataset.latents(tmp_path / "built", tmp_path / "model", tmp_path / "z", shard_size=1)
    dataset.latents(tmp_path / "built", tmp_path / "model", tmp_path / "whole", shard_size=1)
    assert shards_of(tmp_path / "z") == shards_of(tmp_path / "whole")
    assert len(dataset.open_latents(tmp_path / "z")) == 60
