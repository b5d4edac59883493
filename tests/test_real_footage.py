"""The main job on footage that nobody made for it: real clips of six sizes, from the files to a painted mp4."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import real_footage

from sora_jax import cli, media
from sora_jax.data import worlds
from sora_jax.evaluate.metrics import psnr

BENCHMARK = Path(__file__).parent / "benchmarks" / "bench_real_footage.py"
FILM = BENCHMARK.with_name("bench_film.py")


@pytest.mark.slow
def test_the_whole_path_on_real_footage(tmp_path):
    try:
        sources = real_footage.fetch(tmp_path / "sources")
    except real_footage.Unavailable as error:
        pytest.skip(str(error))
    facts = {path.name: media.probe(path) for path in sources}
    assert {name: told["frames"] for name, told in facts.items() if told["kind"] == "video"} == {
        "bikes.mp4": 250,
        "carphone_pristine.mp4": 120,
        "bigbuckbunny.mp4": 132,
        "cityCC0.mpg": 190,
        "flowers.mp4": 451,
    }

    command = [sys.executable, str(BENCHMARK), "--steps", "30", "--workdir", str(tmp_path), "--json"]
    env = {**os.environ, "XLA_FLAGS": ""}  # one device, as a newcomer has
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])

    assert result["clips"] == {"train": 17, "held_out": 7}
    assert {line["source"] for line in result["quality"]} == set(facts)
    for line in result["quality"]:
        assert (line["width"], line["height"]) == (facts[line["source"]]["width"], facts[line["source"]]["height"])
        assert line["psnr"] > 18 and line["ssim"] > 0.4, line
    assert result["fill"] > 0.7 and result["native_fill"] > 0.9
    first, last = result["loss"]
    assert last < first and result["held_out_loss"] < 2 * first
    sizes = [(v.width, v.height, len(v.frames)) for v in map(media.read, result["painted"])]
    assert sizes[0] == (184, 104, 17) and all(frames == 17 for *_, frames in sizes)
    assert all(media.probe(sheet)["kind"] == "image" for sheet in result["sheets"])


@pytest.mark.slow
def test_every_verb_on_a_real_clip(tmp_path, capsys):
    """What is given comes back through the command and its H.264 file: 176x144 at 25 fps, with the bundled model."""
    try:
        sources = {path.name: path for path in real_footage.fetch(tmp_path / "sources")}
    except real_footage.Unavailable as error:
        pytest.skip(str(error))
    whole = media.read(sources["carphone_pristine.mp4"])
    a, b = (media.Video(whole.frames[at : at + 9], whole.fps) for at in (0, 60))
    a.save(tmp_path / "a.mp4")
    b.save(tmp_path / "b.mp4")
    a, b = (media.read(tmp_path / name).frames for name in ("a.mp4", "b.mp4"))
    media.Video(a[:1]).save(tmp_path / "a.png")
    height, width = a.shape[1:3]
    left = np.zeros((1, height, width, 3), np.uint8)
    left[:, :, : width // 2] = 255
    media.Video(left).save(tmp_path / "left.png")
    second = f"{8 / whole.fps:.4f}"
    verbs = {  # arguments, then (given frames, where they are in what is made)
        "animate": (["a.png", "a man talks in a car", "--frames", 9], [(a[:1], slice(0, 1))]),
        "extend": (["a.mp4", "--before", second, "--after", second], [(a, slice(8, 17))]),
        "loop": (["a.mp4", "--seconds", second], [(a, slice(0, 9))]),
        "connect": (["a.mp4", "b.mp4", "--seconds", second], [(a, slice(0, 9)), (b, slice(-9, None))]),
        "fill": (["a.mp4", "--missing", "3-5"], [(a[:3], slice(0, 3)), (a[6:], slice(6, 9))]),
        "outpaint": (["a.mp4", "--size", f"{width + 48}x{height}"], []),
        "edit": (["a.mp4", "a man in green", "--strength", 0.5, "--mask", "left.png"], []),
        "interpolate": (["a.mp4", "--fps", 2 * whole.fps], [(a, slice(0, 17, 2))]),
    }
    for verb, (args, given) in verbs.items():
        args = [tmp_path / word if str(word).endswith((".mp4", ".png")) else word for word in args]
        flags = ["--steps", 2, "--out", tmp_path / f"{verb}.mp4", "--sheet", tmp_path / f"{verb}.png"]
        assert cli.main([str(word) for word in (verb, *args, *flags)]) == 0, capsys.readouterr().err
        made = media.read(tmp_path / f"{verb}.mp4").frames
        for frames, where in given:
            assert psnr(made[where], frames) > 33, f"{verb}: what was given is not there"
        if verb == "outpaint":
            assert psnr(made[:, :, 24:-24], a) > 33
        if verb == "edit":
            assert psnr(made[:, :, width // 2 + 16 :], a[:, :, width // 2 + 16 :]) > 33
            assert psnr(made[:, :, : width // 2], a[:, :, : width // 2]) < 30, "nothing was edited"


@pytest.mark.slow
def test_a_folder_of_footage_becomes_packed_rows(tmp_path):
    """`bench_film.py` on three shots instead of a film; run again it does nothing twice."""
    footage = tmp_path / "footage"
    footage.mkdir()
    takes = [worlds.render(worlds.sample(seed, size=(192, 144), frames=17)) for seed in (2, 3, 4)]
    media.Video(np.concatenate(takes), 8.0).save(footage / "film.mp4")
    work, pages = tmp_path / "work", []
    command = [sys.executable, str(FILM), str(footage), "--workdir", str(work), "--rows", "2"]
    for _ in range(2):
        done = subprocess.run(command, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        pages.append(done.stdout)
    kept = len((work / "curated" / "clips.jsonl").read_text().splitlines())
    assert pages[0] == pages[1] and f"of 3 shots {kept} kept" in pages[0] and kept >= 2
    assert f"{kept} told by tiny, 0 failed" in pages[0]
    assert len((work / "asked" / "answers" / "0-of-1.jsonl").read_text().split("\n{")) == kept  # nobody was asked twice
    assert all(media.probe(work / name)["kind"] == "image" for name in ("rows.png", "told.jpg"))
