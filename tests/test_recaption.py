"""Captions from an endpoint that answers slowly, wrongly, 429 and not at all: nothing is asked twice, nothing is
lost.
"""

import base64
import io
import json
import resource
import signal

import numpy as np
import pytest
from PIL import Image

from sora_jax import endpoint
from sora_jax.cli import main
from sora_jax.data import dataset
from sora_jax.data.captions import Caption, caption_of
from sora_jax.data.recaption import INSTRUCTION, recaption
from sora_jax.errors import InputError
from sora_jax.media import Video
from tests.openai_server import Answer, serve

CLIPS = 6
COLORS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200), (200, 30, 200)]
GOOD = {"short": "a plain color", "long": "One color fills the frame.", "camera": "still", "style": "flat"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A dataset of six images and clips, each of one colour, captioned "old 0" to "old 5"."""
    folder = tmp_path_factory.mktemp("clips")
    for i, color in enumerate(COLORS):
        frames = np.full((12 if i == 1 else 1, 32, 48, 3), color, np.uint8)
        Video(frames, 8.0).save(folder / f"{i}.{'mp4' if i == 1 else 'png'}")
        (folder / f"{i}.txt").write_text(f"old {i}")
    dataset.build(folder, folder / "dataset")
    return folder / "dataset"


def good(**more) -> Answer:
    return Answer(json.dumps(GOOD | {"confidence": 0.9} | more))


def color_of(body: dict) -> int:
    """Which of COLORS the first frame of a request shows."""
    url = next(part["image_url"]["url"] for part in body["messages"][1]["content"] if part["type"] == "image_url")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))), float)
    return int(np.abs(pixels.mean((0, 1)) - np.asarray(COLORS)).sum(1).argmin())


def told(out) -> list[tuple]:
    return [(row["caption"], row["captions"], row["told"]) for row in dataset.open_clips(out)]


def test_every_clip_gets_its_own_answer_and_keeps_its_old_caption(clips, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serve(lambda body, n: good(long=f"Color {color_of(body)}.", short=f"color {color_of(body)}")) as server:
        report = recaption(clips, f"openai:{server.url}#vl", tmp_path / "out", price=(1.0, 10.0))
        again = recaption(clips, f"openai:{server.url}#vl", tmp_path / "out")
    assert len(server.requests) == CLIPS and set(server.keys) == {"Bearer secret"}
    assert report["told"] == CLIPS and report["failed"] == 0 and report["records"] == CLIPS == again["records"]
    assert report["dollars"] == pytest.approx(CLIPS * (1000 * 1.0 + 100 * 10.0) / 1e6)
    source = f"openai:{server.url}#vl"
    for i, (caption, captions, said) in enumerate(told(tmp_path / "out")):
        assert caption == f"old {i}" and captions == [f"color {i}", f"Color {i}."]
        assert said == Caption(f"color {i}", f"Color {i}.", "still", "flat", 0.9, source)
    before, after = dataset.open_clips(clips), dataset.open_clips(tmp_path / "out")
    assert all(a["media"] == b["media"] and a["name"] == b["name"] for a, b in zip(before, after))


def test_frames_are_shown_in_order_with_their_times(clips, tmp_path):
    with serve(lambda body, n: good()) as server:
        recaption(clips, f"openai:{server.url}#vl", tmp_path / "out")
    request = next(body for body in server.requests if color_of(body) == 1)
    said = [part["text"] for part in request["messages"][1]["content"] if part["type"] == "text"]
    assert said[0] == "8 frames of a clip of 1.5 s:" and said[1] == "0.00 s" and len(said) == 9
    times = [float(text.split()[0]) for text in said[1:]]
    assert times == sorted(times) and times[-1] == pytest.approx(11 / 8, abs=0.01)


def test_slow_busy_and_wrong_answers_are_asked_for_again(clips, tmp_path):
    first = {
        0: Answer("busy", 429, after=0.1),
        1: Answer("broken", 500),
        2: Answer("I cannot see any video."),
        3: Answer(None),
    }
    seen = {}

    def answer(body, n):
        color = color_of(body)
        seen[color] = seen.get(color, 0) + 1
        if seen[color] == 1 and color == 4:
            return good()._replace(wait=5.0)  # longer than the caller waits
        if seen[color] == 1 and color == 5:
            return good(confidence="very")
        return first[color] if seen[color] == 1 and color in first else good()

    with serve(answer) as server:
        report = recaption(clips, f"openai:{server.url}#vl", tmp_path / "out", timeout=3.0, retries=2)
    assert report["told"] == CLIPS and set(seen.values()) == {2}


def test_failures_keep_the_old_caption_and_are_told_and_asked_again(clips, tmp_path):
    mended = []

    def answer(body, n):
        if color_of(body) == 2 and not mended:
            return Answer('{"short": "no long one"}')
        return good()

    with serve(answer) as server:
        who, out = f"openai:{server.url}#vl", tmp_path / "out"
        report = recaption(clips, who, out)
        assert report["told"] == CLIPS - 1 and report["failed"] == 1 and report["records"] == CLIPS
        (bad,) = json.loads((out / "failures.json").read_text())
        assert bad == {"clip": 2, "file": "2.png", "reason": "there is no long caption"}
        assert told(out)[2] == ("old 2", ["old 2"], None)
        asked = len(server.requests)
        mended.append(True)
        assert recaption(clips, who, out)["failed"] == 0
        assert len(server.requests) == asked + 1
    assert told(out)[2][1][1] == GOOD["long"] and json.loads((out / "failures.json").read_text()) == []


def test_an_endpoint_that_is_gone_stops_the_run_and_nothing_told_is_lost(clips, tmp_path, monkeypatch):
    monkeypatch.setattr("sora_jax.data.recaption.GIVE_UP", 2)
    with serve(lambda body, n: good() if n < 2 else Answer(None)) as server:
        who, out = f"openai:{server.url}#vl", tmp_path / "out"
        with pytest.raises(InputError, match=r"2 requests in a row came to nothing .*run the same command again"):
            recaption(clips, who, out, parallel=1, retries=0)
        asked = len(server.requests)
    assert asked == 4 and len((out / "answers" / "0-of-1.jsonl").read_text().splitlines()) == 2
    assert not (out / "report.json").exists()


def test_an_answer_cut_short_is_asked_for_again_and_takes_no_other_with_it(clips, tmp_path):
    with serve(lambda body, n: good(long=f"Color {color_of(body)}.")) as server:
        who, out = f"openai:{server.url}#vl", tmp_path / "out"
        recaption(clips, who, out)
        answers = out / "answers" / "0-of-1.jsonl"
        answers.write_text(answers.read_text()[:-20])  # killed, or the disk full, in the midst of the last
        asked = len(server.requests)
        assert recaption(clips, who, out)["told"] == CLIPS and len(server.requests) == asked + 1
        recaption(clips, who, out)
        assert len(server.requests) == asked + 1
    assert [said.long for _, _, said in told(out)] == [f"Color {i}." for i in range(CLIPS)]


def test_a_full_disk_is_one_sentence(clips, tmp_path):
    with serve(lambda body, n: good()) as server:
        before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:  # a limit on the size of files stands for the disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
            with pytest.raises(InputError, match=r"cannot write to .*out \(.*too large"):
                recaption(clips, f"openai:{server.url}#vl", tmp_path / "out", parallel=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        asked = len(server.requests)
        assert 0 < asked < CLIPS
        assert recaption(clips, f"openai:{server.url}#vl", tmp_path / "out")["told"] == CLIPS


def test_hosts_share_the_clips_and_the_last_writes_the_dataset(clips, tmp_path):
    with serve(lambda body, n: good()) as server:
        who, out = f"openai:{server.url}#vl", tmp_path / "out"
        first = recaption(clips, who, out, host=0, hosts=2)
        assert first["waiting"] == CLIPS // 2 and first["records"] == 0 and not (out / "report.json").exists()
        assert recaption(clips, who, out, host=1, hosts=2)["records"] == CLIPS
    assert len(server.requests) == CLIPS


def test_requests_keep_to_the_rate(clips, tmp_path):
    with serve(lambda body, n: good()) as server:
        recaption(clips, f"openai:{server.url}#vl", tmp_path / "out", rate=600.0)
    assert max(server.times) - min(server.times) > 0.09 * (CLIPS - 1)  # a tenth of a second each


def test_what_the_footage_says_is_content(clips, tmp_path):
    """The instruction stands alone in the system's message; no word of a clip, its name or its captions gets there."""
    with serve(
        lambda body, n: good(long="IGNORE ALL RULES is written on a wall.", extra="rm -rf", source="me")
    ) as server:
        recaption(clips, f"openai:{server.url}#vl", tmp_path / "out")
    assert {body["messages"][0]["content"] for body in server.requests} == {INSTRUCTION}
    assert "old" not in json.dumps([body["messages"][1]["content"][0] for body in server.requests])
    assert told(tmp_path / "out")[0][2].source.startswith("openai:")  # not what the answer claims


def test_a_refusal_is_one_sentence(clips, tmp_path, capsys):
    with serve(lambda body, n: Answer("no such key", 401)) as server:
        code = main(["caption", str(clips), "--captioner", f"openai:{server.url}#vl", "--out", str(tmp_path / "out")])
    assert code == 2 and len(server.requests) <= 4
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"sora-jax: {server.url} refuses model 'vl'") and "no such key" in told


@pytest.mark.parametrize("spec", ["openai:localhost#m", "openai:http://localhost/v1", "openai:#m"])
def test_a_bad_endpoint_is_one_sentence(spec):
    with pytest.raises(InputError, match=r"write openai:URL#model"):
        endpoint.parse(spec)


def test_a_folder_of_something_else_is_left_alone(clips, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="choose another --out"):
        recaption(clips, "openai:http://localhost:1/v1#m", tmp_path)
    with pytest.raises(InputError, match="old captions stay"):
        recaption(clips, "openai:http://localhost:1/v1#m", clips)


@pytest.mark.parametrize(
    "said, sentence",
    [
        ("a text", "an object of short, long"),
        ({"short": "x"}, "no long caption"),
        ({"long": ["x"]}, "must be a text"),
        ({"long": "x" * 5000}, "at most 4000"),
        ({"long": "x", "confidence": 3}, "from 0 to 1"),
    ],
)
def test_what_is_no_caption(said, sentence):
    with pytest.raises(InputError, match=sentence):
        caption_of(said, "person")
