"""Curation: known footage is cut where it was cut, planted faults are found, and nothing is lost by a kill."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("scenedetect")
pytest.importorskip("tensorflow_datasets")

from sora_jax import cli, media
from sora_jax.data import curate, curate_report, dataset, duplicates, scores, shots, worlds
from sora_jax.errors import InputError
from sora_jax.train import configs

ROOT = Path(__file__).parent.parent
CONFIG = str(ROOT / "configs" / "curate.py")
W, H, FPS = 192, 128, 12.0
SETTINGS = ("scan.text=false", "keep.motion=400", "keep.side=64")  # drawn things move fast


def config(*settings: str):
    return configs.read(CONFIG, (*SETTINGS, *settings))


def scene(seed: int, frames: int = 18, size=(W, H), **fixed) -> np.ndarray:
    return worlds.render(worlds.sample(seed, size=size, frames=frames, fps=FPS, **fixed))


def framed(frames: np.ndarray, top: int, left: int) -> np.ndarray:
    """With black bars above and below, left and right."""
    return np.pad(frames, ((0, 0), (top, top), (left, left), (0, 0)))


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Path:
    """Three shots in one film with a caption; then one file for each thing that can be wrong, and one that is not."""
    root = tmp_path_factory.mktemp("footage")
    moving = dict(motion="right", camera="still")
    good = [scene(seed, background=kind, **moving) for seed, kind in ((1, "hills"), (2, "tiles"), (3, "gradient"))]
    media.Video(np.concatenate(good), FPS).save(root / "film.mp4")
    (root / "film.txt").write_text("three shots of a small world")
    black = np.zeros_like(good[0])
    media.Video(black, FPS).save(root / "black.mp4")
    media.Video(np.repeat(scene(4, 1), 18, 0), FPS).save(root / "static.mp4")
    media.Video(good[1], FPS).save(root / "second.mp4")  # the film's second shot, once more
    small = [np.asarray(media.Image.fromarray(x).resize((144, 96))) for x in good[2]]
    media.Video(np.stack(small), FPS).save(root / "third-small.webm")
    media.Video(framed(scene(5, background="tiles", **moving), 30, 0), FPS).save(root / "letterbox.mp4")
    whole = scene(6, 24, background="hills", **moving)
    media.Video(np.concatenate([black[:9], whole, black[:7]]), FPS).save(root / "fades.mp4")
    media.Video(np.concatenate([scene(seed, 12) for seed in (7, 8, 9)]), FPS).save(root / "damaged.mp4")
    data = bytearray((root / "damaged.mp4").read_bytes())
    where = len(data) * 3 // 4
    data[where : where + 300] = bytes(300)
    (root / "damaged.mp4").write_bytes(data)
    (root / "short.mp4").write_bytes((root / "film.mp4").read_bytes()[:3000])
    media.Video(scene(10, 1), 1).save(root / "photo.png")
    return root


@pytest.fixture(scope="module")
def curated(footage, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("curated") / "out"
    return out, curate.curate(footage, out, config())


def lines(out: Path, name: str = "clips") -> list[dict]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def digests(out: Path) -> dict[str, str]:
    names = [p for p in sorted(out.iterdir()) if "array_record" in p.name or p.suffix in (".jsonl", ".html")]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in names if not p.name.startswith(".")}


# ------------------------------------------------------------------------------------------------ shots


def test_a_film_of_known_scenes_is_cut_where_it_was_cut(tmp_path):
    rng = np.random.default_rng(0)
    lengths = rng.integers(9, 30, 40)
    takes = [scene(100 + n, int(length), (96, 64)) for n, length in enumerate(lengths)]
    media.Video(np.concatenate(takes), FPS).save(tmp_path / "film.mp4")
    rows = list(shots.records(tmp_path / "film.mp4", "film.mp4", [], config().scan.to_dict()))
    found, truth = [row["first"] for row in rows][1:], np.cumsum(lengths)[:-1]
    assert np.mean([min(abs(cut - at) for at in found) <= 1 for cut in truth]) >= 0.95
    assert np.mean([min(abs(cut - at) for cut in truth) <= 1 for at in found]) >= 0.95


@pytest.mark.parametrize("seconds", [0.5, 20.0])
def test_pieces_tile_the_footage(seconds):
    frames = np.concatenate([scene(1, 20), np.zeros((9, H, W, 3), np.uint8), scene(2, 3), scene(3, 1)])
    found = list(shots.pieces(frames, FPS, config(f"scan.seconds={seconds}").scan.to_dict()))
    assert [piece.first for piece in found] == [0, *np.cumsum([piece.frames for piece in found])[:-1]]
    assert sum(piece.frames for piece in found) == len(frames)
    assert [(p.first, p.frames) for p in found if p.black] == ([(20, 6), (26, 3)] if seconds < 1 else [(20, 9)])
    assert max(piece.frames for piece in found) <= max(6, seconds * FPS)


# ------------------------------------------------------------------------------------------------ verdicts


def test_what_is_wrong_is_found(curated):
    out, told = curated
    kept = {line["name"] for line in lines(out)}
    lost = {line["name"]: line["reasons"] for line in lines(out, "dropped")}
    assert {"film.mp4#t=0.000,1.500", "film.mp4#t=1.500,3.000", "film.mp4#t=3.000,4.500", "photo.png"} <= kept
    assert lost["black.mp4"] == ["black"] and lost["static.mp4"] == ["static"]
    assert lost["second.mp4"] == ["duplicate of film.mp4#t=1.500,3.000"]
    assert lost["third-small.webm"] == ["duplicate of film.mp4#t=3.000,4.500"]
    assert lost["fades.mp4#t=0.000,0.750"] == lost["fades.mp4#t=2.750,3.333"] == ["black"]
    assert {"letterbox.mp4", "fades.mp4#t=0.750,2.750"} <= kept
    reasons = {bad["file"]: bad["reason"] for bad in told["skipped"]}
    assert set(reasons) == {"damaged.mp4", "short.mp4"} and all("cut short" in said for said in reasons.values())
    assert told["kept"] == len(kept) and told["shots"] == len(kept) + len(lost) == len(curate.open_shots(out))
    assert sum(told["dropped"].values()) == len(lost) and told["dropped"]["duplicate"] == 2
    assert told["frames_per_core_second"] > 0 and 0 <= told["decoding"] <= 1


def test_shots_before_the_damage_are_kept(curated):
    some = [line["name"] for line in lines(curated[0]) if line["file"] == "damaged.mp4"]
    assert some[0] == "damaged.mp4#t=0.000,1.000" and len(some) < 3


def test_a_letterbox_is_cut_off(curated):
    (line,) = [line for line in lines(curated[0]) if line["file"] == "letterbox.mp4"]
    x, y, width, height = line["crop"]
    assert (x, width) == (0, W) and 30 <= y <= 34 and y + height <= 30 + H and height >= H - 8 and y % 2 == 0


def test_build_reads_what_was_kept(curated, footage, tmp_path):
    report = dataset.build(curated[0], tmp_path / "clips", shard_size=3)
    rows = {row["name"]: row for row in dataset.open_clips(tmp_path / "clips")}
    listed = {line["name"]: line for line in lines(curated[0])}
    assert report["skipped"] == [] and set(rows) == set(listed)
    assert rows["photo.png"]["media"] == (footage / "photo.png").read_bytes()  # a whole file, untouched
    for name, row in rows.items():
        line = listed[name]
        (x, y, width, height), video = line["crop"], media.decode(row["media"])
        assert (video.width, video.height, len(video.frames)) == (width, height, line["frames"])
        whole = media.read(footage / line["file"], max_frames=line["first"] + line["frames"]).frames
        cut = whole[line["first"] :, y : y + height, x : x + width]
        assert np.abs(video.frames.astype(int) - cut).mean() < 3
    assert rows["film.mp4#t=1.500,3.000"]["captions"] == ["three shots of a small world"]
    assert set(dataset.captions_of(curated[0])) == {"three shots of a small world"}


def test_build_resamples_what_was_kept(curated, footage, tmp_path):
    dataset.build(curated[0], tmp_path / "clips", fps=6.0)
    rows = {row["name"]: row for row in dataset.open_clips(tmp_path / "clips")}
    assert rows["film.mp4#t=1.500,3.000"]["frames"] == 9 and rows["film.mp4#t=1.500,3.000"]["fps"] == 6
    assert rows["photo.png"]["frames"] == 1 and rows["photo.png"]["media"] == (footage / "photo.png").read_bytes()


def test_thresholds_are_tried_without_reading_footage_again(curated, footage, tmp_path):
    out, _ = curated
    before = {p: p.stat().st_mtime_ns for p in out.glob("*array_record*")}
    assert [line["file"] for line in lines(out)].count("second.mp4") == 0
    curate.curate(footage, out, config("keep.levels=0", "keep.bits=0"))
    assert [line["file"] for line in lines(out)].count("third-small.webm") == 1
    assert before == {p: p.stat().st_mtime_ns for p in out.glob("*array_record*")}
    again = digests(out)
    curate.curate(footage, out, config())
    assert again != digests(out)
    with pytest.raises(InputError, match="begun with scan="):
        curate.curate(footage, out, config("scan.size=256"))


def test_the_page_stands_alone(curated):
    page = (curated[0] / "report.html").read_text()
    twins = curated[1]["dropped"]["duplicate"]  # beside each the one that stays
    assert page.count("data:image/jpeg;base64,") == len(curate.open_shots(curated[0])) + twins
    assert page.count("this one stays") == twins == 2
    assert "http" not in page and "src=" in page and "<script" not in page
    assert "Dropped: duplicate" in page and "damaged.mp4" in page and "three shots of a small world" in page
    row = curate.open_shots(curated[0])[0] | {"file": "<b>&.mp4"}
    assert "&lt;b&gt;&amp;.mp4" in curate_report.page([row], [[]], config().keep.to_dict(), [])


# ------------------------------------------------------------------------------------------------ duplicates


def test_near_finds_what_comparing_all_finds():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
    for n in range(0, 200, 2):  # a neighbour 0 to 9 bits away
        hashes[n + 1] = hashes[n] ^ np.bitwise_or.reduce(
            np.uint64(1) << rng.choice(64, n // 2 % 10, replace=False).astype(np.uint64), initial=np.uint64(0)
        )
    for bits in (0, 3, 7):
        found = {pair for i, j in duplicates.near(hashes, bits) for pair in zip(i.tolist(), j.tolist())}
        far = np.bitwise_count(hashes[:, None] ^ hashes[None])
        assert found == {(i, j) for i, j in np.argwhere(far <= bits).tolist() if i < j} and len(found) >= 10
    with pytest.raises(InputError, match="up to 7 bits"):
        list(duplicates.near(hashes, 8))


def test_the_first_of_a_chain_stays_and_one_shot_is_no_duplicate_of_itself():
    def clip(hashes, shot, grey=100):
        return np.array(hashes, np.uint64), np.full((len(hashes), 8, 8, 3), grey, np.uint8), shot

    far = 2**64 - 1
    assert duplicates.drop([clip([5, far], "a"), clip([5, 5], "b"), clip([5, 4], "c")], 3, 5, 0.5) == {1: 0, 2: 0}
    assert duplicates.drop([clip([5, far], "a"), clip([7, 9, 2**40 - 1, 2**50 - 1], "b")], 1, 5, 0.5) == {}
    assert duplicates.drop([clip([5], "a"), clip([5], "a")], 3, 5, 0.5) == {}
    assert duplicates.drop([clip([5], "a"), clip([5], "b", 120)], 3, 5, 0.5) == {}  # other colours
    assert duplicates.drop([], 3, 5, 0.5) == {}


# ------------------------------------------------------------------------------------------------ scores


def cloud(height=180, width=320, seed=0) -> np.ndarray:
    """Smooth grey noise: something to follow everywhere."""
    import cv2

    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.uint8(np.clip(128 + 40 * soft / soft.std(), 0, 255))


def test_motion_is_measured_and_a_steady_pan_does_not_shake():
    big = cloud(260, 400)
    view = lambda x, y: big[20 + y : 200 + y, 20 + x : 340 + x]
    pan = np.stack([view(3 * f, 0) for f in range(3)])[None]
    hand = np.stack([view(0, 0), view(4, -3), view(0, 0)])[None]
    still = np.stack([view(0, 0)] * 3)[None]
    unit = 100 * 24 / np.hypot(180, 320)
    assert scores.motion(pan, 24) == (pytest.approx(3 * unit, rel=0.1), pytest.approx(0, abs=0.1 * unit))
    assert scores.motion(hand, 24)[1] == pytest.approx(10 * unit, rel=0.1)
    assert scores.motion(still, 24) == (pytest.approx(0, abs=0.2), 0)
    assert scores.change(np.stack([big, big])) == 0 and scores.change(np.stack([big, big[::-1]])) > 50
    assert np.isnan(scores.change(big[None])) and np.isnan(scores.motion(still[:0], 24)[0])


def test_blur_grows_as_scikit_image_s_does():
    import cv2
    from skimage import data, measure

    picture = cv2.resize(data.camera(), (256, 256), interpolation=cv2.INTER_AREA)
    sharp, seen = scores.blur(picture), []
    for sigma in (0, 1, 2, 4):
        soft = cv2.GaussianBlur(picture, (0, 0), sigma) if sigma else picture
        seen.append((scores.blur(soft), measure.blur_effect(soft)))  # which looks at Sobel's edges
    ours, theirs = np.array(seen).T
    assert (np.diff(ours) > 0).all() and np.abs(ours - theirs).max() < 0.15
    assert scores.blur(picture // 3) == pytest.approx(sharp, abs=0.02)  # contrast is nothing to it
    assert sharp < 0.4 < 0.7 < scores.blur(cv2.GaussianBlur(picture, (0, 0), 4)) and scores.blur(picture * 0) == 1


def test_exposure_and_bars():
    grey = np.full((100, 160), 120, np.uint8)
    grey[:25], grey[25:35] = 3, 255
    assert scores.exposure(grey) == (25.0, 10.0)
    clip = np.stack([np.pad(cloud(100, 160, seed), ((12, 14), (0, 20))) for seed in range(3)])
    assert scores.bars(clip) == (12, 14, 0, 20)
    night = np.linspace(0, 200, 100)[:, None].repeat(160, 1).astype(np.uint8)[None]
    assert scores.bars(night) == (0, 0, 0, 0)
    assert scores.bars(np.zeros((2, 100, 160), np.uint8)) == (0, 0, 0, 0)
    assert scores.is_black(np.full((9, 9), 20, np.uint8)) and not scores.is_black(clip[0])


def test_a_hash_survives_size_and_light_but_not_another_picture():
    import cv2

    big, other = cloud(240, 320), cloud(240, 320, 1)
    far = lambda a, b: int(np.bitwise_count(scores.phash(a) ^ scores.phash(b)))
    assert far(big, cv2.resize(big, (160, 120), interpolation=cv2.INTER_AREA)) <= 4
    assert far(big, np.uint8(big * 0.8 + 20)) <= 4 and far(big, other) > 16


def test_text_is_read_where_there_is_some(tmp_path):
    if not scores.can_read():
        pytest.skip("RapidOCR is not installed")
    import cv2

    plain = np.repeat(cloud()[..., None] // 2, 3, -1)
    picture = plain.copy()
    assert scores.text(plain) == 0
    cv2.putText(picture, "WATERMARK 2026", (20, 160), cv2.FONT_HERSHEY_SIMPLEX, 1, (255, 255, 255), 2)
    assert 3 < scores.text(picture) < 25
    clip = np.repeat(plain[None], 36, 0)
    clip[-9:] = picture  # a title that comes late
    media.Video(clip, FPS).save(tmp_path / "title.mp4")
    (row,) = shots.records(tmp_path / "title.mp4", "title.mp4", [], config("scan.text=true").scan.to_dict())
    assert row["text"] > 2


# ------------------------------------------------------------------------------------------------ kills and mistakes


def test_killed_and_run_again_is_never_killed(footage, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for n in range(12):
        os.link(footage / ("film.mp4" if n % 2 else "fades.mp4"), many / f"{n:02}.mp4")
    curate.curate(many, tmp_path / "whole", config(), shard_size=1)
    code = "import sys; from test_curate import *; curate.curate(sys.argv[1], sys.argv[2], config(), shard_size=1)"
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", code, str(many), str(out)], env=env)
    while len(list(out.glob("shots*array_record*"))) < 2:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "report.json").exists(), "it was killed too late"
    with pytest.raises(InputError, match="not finished"):
        dataset.build(out, tmp_path / "clips")
    finished = {p: p.stat().st_mtime_ns for p in out.glob("shots*array_record*")}
    curate.curate(many, out, config(), shard_size=1)
    assert digests(out) == digests(tmp_path / "whole") and len(digests(out)) == 15
    assert all(p.stat().st_mtime_ns == then for p, then in finished.items())


def test_mistakes_are_one_sentence(footage, curated, tmp_path, monkeypatch, capsys):
    def says(*argv: str) -> str:
        assert cli.main(["data", "curate", *argv, "--config", CONFIG]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        return said[0]

    out = ["--out", str(tmp_path / "out")]
    assert "does not exist" in says(str(tmp_path / "nothing"), *out)
    assert "keep.bits must be 0 to 7, not 9" in says(str(footage), *out, "--config.keep.bits=9")
    assert "did you mean keep.blur" in says(str(footage), *out, "--config.keep.blurr=1")
    assert "scan.size must be at least 64" in says(str(footage), *out, "--config.scan.size=8")
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    assert "pip install 'sora_jax[curate]'" in says(str(footage), *out)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"none of the .* shots was kept.*loosen"):
        curate.verdict(curated[0], config("keep.side=1000").keep.to_dict())
    assert lines(curated[0]) == []
    with pytest.raises(InputError, match="leave out"):
        dataset.build(curated[0], tmp_path / "clips", captions="some.csv")
    curate.verdict(curated[0], config().keep.to_dict())
