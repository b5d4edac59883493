"""What evaluations leave behind: a page of everything, and two of them compared as chance would have it."""

import json

import numpy as np
import pytest

from sora_jax import cli
from sora_jax.errors import InputError
from sora_jax.evaluate import results, vbench
from sora_jax.evaluate.results import Case
from sora_jax.media import Video, probe

RNG = np.random.default_rng(0)


def cases(share: float, n: int = 80, seed: int = 0, group: str = "") -> list[Case]:
    draw = np.random.default_rng(seed).random(n)
    return [
        Case(group, str(i), {"right": [float(draw[i] < share)], "seldom": [0.5] if i == 3 else []}) for i in range(n)
    ]


def test_a_comparison_finds_what_is_there_and_nothing_else(tmp_path):
    """The interval of equal models holds 0 about 19 times of 20; that of very different ones never."""
    holds = 0
    for seed in range(20):
        results.write(tmp_path / "a", "world", "one", {}, cases(0.5, seed=2 * seed))
        results.write(tmp_path / "b", "world", "another", {}, cases(0.5, seed=2 * seed + 1))
        found = results.compare(tmp_path / "a", tmp_path / "b")["scores"]["right"]
        holds += found["low"] <= 0 <= found["high"]
    assert holds >= 16
    results.write(tmp_path / "b", "world", "another", {}, cases(0.9, seed=1))
    found = results.compare(tmp_path / "a", tmp_path / "b")
    assert found["scores"]["right"]["low"] > 0.1 and found["scores"]["right"]["cases"] == 80
    assert found["scores"]["seldom"] == dict(a=0.5, b=0.5, difference=0, low=0, high=0, cases=1)
    told = results.table(found)
    assert "A: one" in told and " *" in told.split("right")[1].splitlines()[0]


def test_pairs_narrow_the_interval(tmp_path):
    """What is hard for both says nothing of their difference: B is right where A is, and in two cases more."""
    a = cases(0.5, n=200)
    extra = [i for i, case in enumerate(a) if not case.scores["right"][0]][:8]
    b = [case._replace(scores=case.scores | {"right": [1.0]}) if i in extra else case for i, case in enumerate(a)]
    results.write(tmp_path / "a", "world", "one", {}, a)
    results.write(tmp_path / "b", "world", "another", {}, b)
    found = results.compare(tmp_path / "a", tmp_path / "b")["scores"]["right"]
    assert found["low"] > 0 and found["difference"] == pytest.approx(0.04)


def test_only_like_evaluations_compare(tmp_path, capsys):
    results.write(tmp_path / "a", "world", "one", {}, cases(0.5))
    results.write(tmp_path / "b", "vae", "one", {}, cases(0.5))
    results.write(tmp_path / "c", "world", "one", {}, cases(0.5, group="elsewhere"))
    for other, why in (("b", "only like ones"), ("c", "no case in common"), ("nothing", "holds no evaluation")):
        with pytest.raises(InputError, match=why):
            results.compare(tmp_path / "a", tmp_path / other)
    assert cli.main(["evaluate", "compare", str(tmp_path / "a"), str(tmp_path / "nothing")]) == 2
    assert cli.main(["evaluate", "compare", str(tmp_path / "a"), str(tmp_path / "a"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["right"]["difference"] == 0


def test_the_page_holds_its_clips_and_escapes_its_words(tmp_path):
    clip = Video(RNG.integers(0, 255, (5, 32, 48, 3), np.uint8), 8.0)
    image = Video(RNG.integers(0, 255, (1, 32, 32, 3), np.uint8))
    shown = Case("fill", "1", {"right": [1.0], "psnr": [31.25]}, "<b> & a", {"painted": clip, "given": image})
    page = results.write(tmp_path, "prompting", "tiny", {"fill": {}}, [shown]).read_text()
    assert "data:video/mp4;base64," in page and "data:image/png;base64," in page
    assert "&lt;b&gt; &amp; a" in page and "<b>" not in page and "31.2" in page and "http" not in page


class Painter:
    """Paints noise of its seed, and counts."""

    def __init__(self):
        self.asked = []

    def generate(self, said, *, size, frames, seed, steps):
        self.asked += [(text, seed) for text in said]
        draw = np.random.default_rng(seed)
        return [Video(draw.integers(0, 255, (frames, size[1], size[0], 3), np.uint8), 8.0) for _ in said]


def test_vbench_finds_five_of_each_prompt_and_a_second_run_paints_what_is_missing(tmp_path):
    rows = [{"prompt_en": name, "dimension": [kind]} for name, kind in (("a cat", "color"), ("a dog", "scene"))]
    rows.append({"prompt_en": "a cat", "dimension": ["object_class"]})
    source = tmp_path / "VBench_full_info.json"
    source.write_text(json.dumps(rows))
    how = dict(size=(48, 32), frames=5, batch=2)
    painter = Painter()
    told = vbench.export(source, tmp_path / "out", painter, **how)
    names = {path.name for path in (tmp_path / "out/videos").iterdir()}
    assert names == {f"{prompt}-{i}.mp4" for prompt in ("a cat", "a dog") for i in range(5)}
    assert told["painted"] == told["videos"] == 10 and len(painter.asked) == 10
    facts = probe(tmp_path / "out/videos/a cat-3.mp4")
    assert (facts["width"], facts["height"], facts["frames"]) == (48, 32, 5)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out/videos").iterdir()}
    (tmp_path / "out/videos/a dog-2.mp4").unlink()
    assert vbench.export(source, tmp_path / "out", painter, **how)["painted"] == 1
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out/videos").iterdir()}
    with pytest.raises(InputError, match=r"was begun with frames = 5, not 9"):
        vbench.export(source, tmp_path / "out", painter, **how | {"frames": 9})
    assert vbench.prompts(source, ["scene"]) == ["a dog"]


def test_a_folder_that_cannot_be_is_told_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "world", "--out", str(tmp_path / "file" / "judged")])
    assert "cannot be a folder: Not a directory" in capsys.readouterr().err


def test_prompts_that_are_not_vbenchs(tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("a red/blue circle\n\n" + "very " * 100 + "long\n")
    vbench.export(text, tmp_path / "out", Painter(), samples=1, size=(32, 32), frames=1)
    named = json.loads((tmp_path / "out/prompts.json").read_text())
    assert sorted(named) == sorted(path.name for path in (tmp_path / "out/videos").iterdir())
    assert "a red/blue circle" in named.values() and all(len(name) < 255 for name in named)
    (tmp_path / "other.json").write_text('[{"prompt": "a"}]')
    for path, names, why in (
        (text, ["color"], "nothing of dimensions"),
        (tmp_path / "other.json", [], "is not VBench's"),
        (tmp_path / "none.txt", [], "cannot be read"),
    ):
        with pytest.raises(InputError, match=why):
            vbench.prompts(path, names)
