"""The main job on footage that nobody made for it: real clips of six sizes, from the files to a painted mp4."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import real_footage

from sora_jax import media

BENCHMARK = Path(__file__).parent / "benchmarks" / "bench_real_footage.py"


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
