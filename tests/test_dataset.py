"""Datasets of clips: nothing touched, nothing lost, whatever is killed, broken or misspelt."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sora_jax import media
from sora_jax.data import captions, dataset, shards, sources, worlds
from sora_jax.errors import InputError
from tests.datasets import kill_when, moving, shards_of, start

pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Path:
    """Five good files of odd sizes and kinds, two bad ones, some that are neither."""
    root = tmp_path_factory.mktemp("footage")
    (root / "deep" / "er").mkdir(parents=True)
    moving(9, 47, 65).save(root / "a.mp4")
    (root / "a.txt").write_text("a wide gradient\nmoves\n")
    moving(6, 64, 32, 24).save(root / "deep" / "b.webm")
    (root / "deep" / "b.json").write_text(json.dumps({"short": "b", "long": "bé, at length"}))
    moving(5, 32, 48, 10).save(root / "deep" / "er" / "c.gif")
    moving(1, 33, 50).save(root / "d.png")
    moving(1, 40, 40).save(root / "E.JPG")
    (root / "broken.mp4").write_bytes((root / "a.mp4").read_bytes()[:700])
    (root / "empty.png").write_bytes(b"")
    (root / "notes.md").write_text("not a clip")
    return root


@pytest.fixture(scope="module")
def built(footage, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "clips"
    dataset.build(footage, out, shard_size=2)
    return out


def test_bytes_stay_as_they_were(footage, built):
    rows = {row["name"]: row for row in dataset.open_clips(built)}
    assert sorted(rows) == ["E.JPG", "a.mp4", "d.png", "deep/b.webm", "deep/er/c.gif"]
    for name, row in rows.items():
        assert row["media"] == (footage / name).read_bytes()
        video = media.decode(row["media"])
        assert (row["width"], row["height"], row["frames"]) == (video.width, video.height, len(video.frames))
        assert row["fps"] == pytest.approx(video.fps)
    assert rows["a.mp4"]["caption"] == "a wide gradient moves"
    assert rows["deep/b.webm"]["captions"] == ["b", "bé, at length"]
    assert rows["d.png"]["captions"] == [] and rows["d.png"]["caption"] == ""


def test_bad_files_are_listed(built):
    report = json.loads((built / "report.json").read_text())
    assert report["records"] == 5
    assert [bad["file"] for bad in report["skipped"]] == ["broken.mp4", "empty.png"]
    assert "cut short" in report["skipped"][0]["reason"] and "empty" in report["skipped"][1]["reason"]


def test_opens_in_tfds(built):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(built)
    rows, ours = builder.as_data_source(split="train"), dataset.open_clips(built)
    assert builder.info.splits["train"].num_examples == len(rows) == len(ours) == 5
    for i in range(5):
        assert rows[i]["media"] == ours[i]["media"] and rows[i]["name"].decode() == ours[i]["name"]
    assert ours[-1]["name"] == ours[4]["name"]
    with pytest.raises(IndexError):
        ours[5]


def test_a_second_run_touches_nothing(footage, built):
    before = {p: p.stat().st_mtime_ns for p in built.iterdir()}
    dataset.build(footage, built, shard_size=2)
    assert before == {p: p.stat().st_mtime_ns for p in built.iterdir()}


def test_killed_and_run_again_is_never_killed(footage, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for i in range(60):
        os.link(footage / "a.mp4", many / f"{i:03}.mp4")
        (many / f"{i:03}.txt").write_text(f"number {i}")
    os.link(footage / "broken.mp4", many / "000-broken.mp4")
    dataset.build(many, tmp_path / "whole", shard_size=1)
    process = start("dataset.build(sys.argv[1], sys.argv[2], shard_size=1)", many, tmp_path / "killed")
    kill_when(process, tmp_path / "killed", 5)
    finished = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").glob("clips*array_record*")}
    dataset.build(many, tmp_path / "killed", shard_size=1)
    assert shards_of(tmp_path / "killed") == shards_of(tmp_path / "whole")
    assert all(p.stat().st_mtime_ns == then for p, then in finished.items())
    report = json.loads((tmp_path / "killed" / "report.json").read_text())
    assert report["records"] == 60 and [bad["file"] for bad in report["skipped"]] == ["000-broken.mp4"]
    assert not list((tmp_path / "killed").glob(".*"))


def test_a_full_disk_loses_nothing(footage, tmp_path):
    """A limit on the size of files stands for the disk: the kernel refuses the write in the same way."""
    for name in ("a.mp4", "d.png"):
        os.link(footage / name, tmp_path / name)
    (tmp_path / "large.png").write_bytes(media.encode(media.Video(np.random.default_rng(0).integers(
        0, 255, (1, 300, 300, 3), dtype=np.uint8))))  # fmt: skip
    out, before = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
        with pytest.raises(InputError, match=r"cannot write to .*out \(.*too large.*finished shards are kept"):
            dataset.build(tmp_path, out, shard_size=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    kept = shards_of(out)
    assert kept
    assert dataset.build(tmp_path, out, shard_size=1)["records"] == 3
    assert kept.items() <= shards_of(out).items()


def test_a_log_hears_of_slow_progress_after_a_leap(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shards, "LOG", 0.0)
    with shards._progress(tmp_path, {"one": 100}, "clips"):
        for now in (50, 51, 52):
            monkeypatch.setitem(shards._under_way, "one", now)
            time.sleep(0.7)
    said = capsys.readouterr().err
    assert all(f" {now}/100" in said for now in (50, 51, 52)), said


def test_nobody_is_warned_of_what_he_does_not_use():
    code = "from sora_jax.data import shards; shards._run([1], print, 'DirectRunner', ())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1" and "WARNING" not in done.stderr


def test_another_dataset_is_not_overwritten(footage, built, tmp_path):
    with pytest.raises(InputError, match="fps=None, not 12"):
        dataset.build(footage, built, shard_size=2, fps=12)
    with pytest.raises(InputError, match="shards=4, not 7"):
        dataset.build(footage, built, shard_size=1)
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(InputError, match="did not begin"):
        dataset.build(footage, tmp_path)


def test_fps_resamples_what_differs(footage, tmp_path):
    dataset.build(footage, tmp_path, fps=8)
    rows = {row["name"]: row for row in dataset.open_clips(tmp_path)}
    assert rows["a.mp4"]["media"] == (footage / "a.mp4").read_bytes()
    assert rows["d.png"]["media"] == (footage / "d.png").read_bytes()
    assert (rows["deep/b.webm"]["fps"], rows["deep/b.webm"]["frames"]) == (8, 2)
    assert len(media.decode(rows["deep/b.webm"]["media"]).frames) == 2


def test_what_is_no_footage_is_said_in_a_sentence(footage, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "readme.md").write_text("hi")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.mp4").write_bytes(b"nonsense")
    (tmp_path / "empty").mkdir()
    for src, sentence in {
        tmp_path / "nowhere": "does not exist",
        footage / "a.mp4": "is a file",
        tmp_path / "empty": "holds nothing",
        tmp_path / "text": "only other files, such as readme.md",
        tmp_path / "bad": "x.mp4",
        "tfds:no_such_thing": "tfds build no_such_thing",
    }.items():
        with pytest.raises(InputError, match=sentence):
            dataset.build(src, tmp_path / "out")
    with pytest.raises(InputError, match="cannot write to"):
        dataset.build(footage, footage / "a.mp4" / "out")
    with pytest.raises(InputError, match="make one with"):
        dataset.open_clips(tmp_path)
    with pytest.raises(InputError, match="runner Flynk"):
        dataset.build(footage, tmp_path / "out2", runner="Flynk")


# ------------------------------------------------------------------------------------------------ captions


def test_tables_of_captions(tmp_path):
    rows = ["file,caption", '"a, b.mp4","says ""hi"", twice"', "sub/c.png,one", 'sub/c.png,"two\nlines"']
    (tmp_path / "t.csv").write_text("\n".join(rows))
    told = captions.table(tmp_path / "t.csv", tmp_path)
    assert told == {"a, b.mp4": ['says "hi", twice'], "sub/c.png": ["one", "two lines"]}
    here = {"file": str(tmp_path / "y.mp4"), "captions": ["é", "é"]}
    (tmp_path / "t.jsonl").write_text('{"file": "x.mp4", "caption": "main", "short": "s"}\n\n' + json.dumps(here))
    assert captions.table(tmp_path / "t.jsonl", tmp_path) == {"x.mp4": ["main", "s"], "y.mp4": ["é"]}


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("t.jsonl", b'{"file": "a.mp4", "caption": "x"}\n{"file": oops}\n', "line 2: this is not JSON"),
        ("t.jsonl", b'\n\n{"caption": "x"}\n', "line 3: no file is named"),
        ("t.jsonl", b'{"file": "a.mp4", "words": "x"}\n', "line 1 has none of the keys"),
        ("t.jsonl", b'{"file": "a.mp4", "caption": 3}\n', "line 1, key 'caption': a caption must be"),
        ("t.csv", b"name,caption\na.mp4,x\n", "line 1: the header must name file"),
        ("t.csv", b"file,caption\na.mp4,x\nb.mp4\n", "line 3: 2 columns"),
        ("t.csv", b'file,caption\na.mp4,"x\n', "line"),
        ("t.csv", b"file,caption\na.mp4,\xff\xfe\n", "line 2: this is not UTF-8"),
        ("t.csv", b"", "header"),
        ("t.jsonl", b"", "no captions"),
        ("t.xml", b"<a/>", ".jsonl or .csv"),
        (None, None, "cannot read"),
        ("t.csv", b"file,caption\nelsewhere.mp4,x\n", "names no file"),
    ],
)
def test_a_table_that_cannot_be_read_names_the_line(footage, tmp_path, name, text, sentence):
    if name:
        (tmp_path / name).write_bytes(text)
    with pytest.raises(InputError, match=sentence):
        dataset.build(footage, tmp_path / "out", captions=tmp_path / (name or "missing.csv"))
    assert not (tmp_path / "out").exists()


def test_a_table_beats_sidecars_and_a_bad_sidecar_is_listed(footage, tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    for name in ("a", "b", "c"):
        os.link(footage / "d.png", src / f"{name}.png")
        (src / f"{name}.json").write_text('{"caption": "beside"}' if name != "c" else '{"caption":\n oops')
    (src / "captions.csv").write_text("file,caption\na.png,in the table\n")
    report = dataset.build(src, tmp_path / "out")
    assert [row["caption"] for row in dataset.open_clips(tmp_path / "out")] == ["in the table", "beside"]
    assert [bad["file"] for bad in report["skipped"]] == ["c.png"] and "line 2" in report["skipped"][0]["reason"]


def test_captions_of_anything(footage, built, tmp_path):
    said = ["a wide gradient moves", "b", "bé, at length"]
    assert sorted(dataset.captions_of(footage)) == sorted(dataset.captions_of(built)) == said
    (tmp_path / "lines.txt").write_text("one\n\ntwo\n")
    assert list(dataset.captions_of(tmp_path / "lines.txt")) == ["one", "two"]
    assert list(dataset.captions_of("world", clips=2, seed=5))[2:] == list(worlds.captions(worlds.sample(6)))
    (tmp_path / "e").mkdir()
    os.link(footage / "d.png", tmp_path / "e" / "d.png")
    with pytest.raises(InputError, match="no captions"):
        list(dataset.captions_of(tmp_path / "e"))


# ------------------------------------------------------------------------------------------------ other TFDS datasets


def borrowed(folder: Path, file_format: str, features: dict, rows: list[dict]) -> Path:
    """A dataset that TFDS itself has written."""
    import tensorflow_datasets as tfds

    class Borrowed(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(rows)

    builder = Borrowed(data_dir=folder, file_format=file_format)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return Path(builder.data_dir)


@pytest.mark.parametrize("file_format", ["array_record", pytest.param("tfrecord", marks=pytest.mark.slow)])
def test_any_tfds_dataset_is_a_source(tmp_path, file_format):
    from tensorflow_datasets import features as f

    clips = [moving(3 + i, 16 + 2 * i, 24).frames for i in range(5)]
    texts = f.Sequence({"text": f.Text(), "id": np.int32})
    video = f.Video(shape=(None, None, None, 3))
    features = {"picture": {"video": video}, "n": np.int64, "title": f.Text(), "captions": texts}
    said = [{"text": [f"clip {i}", "it moves"], "id": [1, 2]} for i in range(5)]
    rows = [{"picture": {"video": v}, "n": i, "title": "no", "captions": said[i]} for i, v in enumerate(clips)]
    path = borrowed(tmp_path, file_format, features, rows)
    dataset.build(f"tfds:{path}", tmp_path / "out", fps=6, shard_size=2)
    rows = {row["frames"]: row for row in dataset.open_clips(tmp_path / "out")}
    assert sorted(rows) == [3, 4, 5, 6, 7]
    for video in clips:
        row = rows[len(video)]
        assert (row["height"], row["width"], row["fps"]) == (*video.shape[1:3], 6)
        assert row["captions"] in ([f"clip {len(video) - 3}", "it moves"], ["it moves", f"clip {len(video) - 3}"])
        assert np.abs(media.decode(row["media"]).frames.astype(int) - video).mean() < 12  # H.264
    assert sorted(dataset.captions_of(f"tfds:{path}"))[:2] == ["clip 0", "clip 1"]


def test_images_with_labels_are_captioned_by_them(tmp_path):
    from tensorflow_datasets import features as f

    grey = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    kinds = {"image": f.Image(shape=(None, None, 1)), "label": f.ClassLabel(names=["a_cat", "dog"])}
    borrowed(tmp_path, "array_record", kinds, [{"image": grey, "label": i} for i in (0, 1)])
    path = next(tmp_path.glob("*/1.0.0"))
    dataset.build(f"tfds:{path}", tmp_path / "out")
    rows = list(dataset.open_clips(tmp_path / "out"))
    assert {row["caption"] for row in rows} == {"a cat", "dog"}
    np.testing.assert_array_equal(media.decode(rows[0]["media"]).frames[0], np.repeat(grey, 3, -1))  # png: exact
    assert dataset.build(f"tfds:borrowed:train[1:]@{tmp_path}", tmp_path / "one")["records"] == 1
    assert dataset.open_clips(tmp_path / "one")[0]["caption"] == rows[1]["caption"]
    with pytest.raises(InputError, match="has no split 'test'"):
        sources.tfds(f"{path.parent.name}:test@{tmp_path}")


def test_clips_of_the_world(footage, tmp_path):
    """A captioner tells clips: the world built as clips is what its latents are made of, images without any loss."""
    how = dict(clips=3, seed=5, scene={"count": 1})
    report = dataset.build("world", tmp_path / "images", max_frames=1, **how)
    rows = list(dataset.open_clips(tmp_path / "images"))
    assert report["records"] == len(rows) == 3
    for row in rows:
        scene = worlds.sample(int(row["name"].removeprefix("world/")), count=1)
        assert tuple(row["captions"]) == worlds.captions(scene) and row["caption"]
        assert np.array_equal(media.decode(row["media"]).frames, worlds.render(scene)[:1])
    dataset.build("world", tmp_path / "clips", max_frames=5, **how)
    rows = list(dataset.open_clips(tmp_path / "clips"))
    assert {row["frames"] for row in rows} <= {1, 5} and any(row["frames"] == 5 for row in rows)
    assert all(len(media.decode(row["media"]).frames) == row["frames"] for row in rows)
    with pytest.raises(InputError, match="say how many"):
        dataset.build("world", tmp_path / "no")
    with pytest.raises(InputError, match="brings its own captions"):
        dataset.build("world", tmp_path / "no", captions="table.csv", clips=1)
    with pytest.raises(InputError, match="built whole"):
        dataset.build(footage, tmp_path / "no", clips=2)
    assert not (tmp_path / "no").exists()
