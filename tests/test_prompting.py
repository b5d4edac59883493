"""Laws of prompting with pictures: what is known comes back exactly, in the source's size and rate, in one program."""

import json
from itertools import pairwise

import numpy as np
import pytest
from test_model import model  # noqa: F401  (a random model with every part: laws do not ask what it paints)

from sora_jax import cli, drafts, media, prompting
from sora_jax.diffusion import canvas, requests, sampler
from sora_jax.errors import InputError
from sora_jax.media import Video
from sora_jax.model import Model


def clip(frames: int, width: int = 21, height: int = 18, seed: int = 0, fps: float = 8.0) -> Video:
    """Smooth noise, so that no two frames are alike."""
    rng = np.random.default_rng(seed)
    return Video(rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8), fps)


A, B = clip(10, seed=1), clip(7, seed=2)
HALF = Video(np.repeat(np.where(np.arange(21) < 9, 255, 0)[None, None, :, None], 18, 1).repeat(3, 3).astype(np.uint8))

# verb: (call, frames, size, {frame of the result: frame it must be})
ORDER = {i: A.frames[i] for i in range(10)}
VERBS = {
    "animate": (lambda m: m.animate(clip(1), "a", frames=9), 9, (21, 18), {0: clip(1).frames[0]}),
    "animate larger": (
        lambda m: m.animate(clip(1), "a", size=(40, 24), frames=9),
        9,
        (40, 24),
        {0: prompting.letterboxed(clip(1), (40, 24)).frames[0]},
    ),
    "animate at the end": (lambda m: m.animate(clip(1), "a", at=1.0, frames=8), 8, (21, 18), {7: clip(1).frames[0]}),
    "animate keys": (
        lambda m: m.animate(keys={0.0: A, 0.75: B}, frames=9),
        9,
        (21, 18),
        {0: A.frames[0], 6: B.frames[0]},
    ),
    "animate keys in one latent": (
        lambda m: m.animate(keys={0.25: A, 0.5: B}, frames=9),
        9,
        (21, 18),
        {2: A.frames[0], 4: B.frames[0]},
    ),
    "extend a picture": (lambda m: m.extend(clip(1, fps=1.0), after=1.0), 9, (21, 18), {0: clip(1).frames[0]}),
    "connect a picture": (
        lambda m: m.connect(clip(1, fps=1.0), B, seconds=0.5),
        12,
        (21, 18),
        {0: clip(1).frames[0]} | {i + 5: B.frames[i] for i in range(7)},
    ),
    "extend after": (lambda m: m.extend(A, after=1.0), 18, (21, 18), ORDER),
    "extend before": (lambda m: m.extend(A, before=0.5), 14, (21, 18), {i + 4: f for i, f in ORDER.items()}),
    "extend far": (lambda m: m.extend(A, before=3.0, after=3.0), 58, (21, 18), {i + 24: f for i, f in ORDER.items()}),
    "loop": (lambda m: m.loop(A, seconds=0.5), 14, (21, 18), ORDER),
    "connect": (
        lambda m: m.connect(A, B, seconds=0.5),
        21,
        (21, 18),
        ORDER | {i + 14: B.frames[i] for i in range(7)},
    ),
    "fill frames": (
        lambda m: m.fill(A, missing=[(3, 5)]),
        10,
        (21, 18),
        {i: f for i, f in ORDER.items() if not 3 <= i <= 5},
    ),
    "interpolate": (lambda m: m.interpolate(B, 16.0), 13, (21, 18), {2 * i: B.frames[i] for i in range(7)}),
    "storyboard": (lambda m: m.storyboard([(1.0, "a"), (1.5, "b", True)], size=(20, 12)), 20, (20, 12), {}),
    "long": (lambda m: m.generate("a", size=(16, 16), seconds=7.0), 56, (16, 16), {}),
}


@pytest.mark.parametrize("verb", VERBS)
def test_known_frames_come_back_exactly(model, verb):  # noqa: F811
    call, frames, size, known = VERBS[verb]
    video = call(model)
    assert (len(video.frames), (video.width, video.height)) == (frames, size)
    for index, frame in known.items():
        np.testing.assert_array_equal(video.frames[index], frame)
    painted = [f for i, f in enumerate(video.frames) if i not in known]
    assert len({f.tobytes() for f in painted}) == len(painted)  # each was painted, none repeated
    np.testing.assert_array_equal(call(model).frames, video.frames)  # the same seed, the same bytes


@pytest.mark.parametrize("before, after", [(30000 / 1001, 60.0), (24000 / 1001, 48.0), (25.0, 30.0), (24.0, 25.0)])
def test_interpolating_keeps_every_frame_at_any_rate(model, monkeypatch, before, after):  # noqa: F811
    """Each at its nearest moment, in order; what is between lies between its neighbours."""
    drawn = []
    monkeypatch.setattr(prompting, "paint", lambda m, draft, prompt: drawn.append(draft) or Video(draft.frames, after))
    clip = Video(np.arange(201, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2).repeat(3, 3), before)
    made = model.interpolate(clip, after).frames[:, 0, 0, 0]
    known = drawn[0].known[:, 0, 0]
    assert made[known].tolist() == list(range(201))
    assert (np.diff(made.astype(int)) >= 0).all() and len(made) == round(200 * after / before) + 1
    assert np.abs(np.flatnonzero(known) / after - np.arange(201) / before).max() <= 0.5 / after + 1e-9


def test_long_prompts_have_noises_of_their_own(model):  # noqa: F811
    twice = model.generate(["a", "a"], size=(16, 16), frames=model.sample["frames"] + 1)
    assert (twice[0].frames != twice[1].frames).any()
    alone = model.generate("a", size=(16, 16), frames=model.sample["frames"] + 1)
    np.testing.assert_array_equal(alone.frames, twice[0].frames)


def test_a_model_of_images_cannot_go_on_with_them():
    assert drafts.windows_of(1, 1, 1) == [(0, 1, 0)]
    with pytest.raises(InputError, match=r"paints 1 frame\(s\) at a time"):
        drafts.windows_of(2, 1, 1)


def test_regions_outside_a_mask_come_back_exactly(model):  # noqa: F811
    inside = HALF.frames[0, ..., 0] > 0
    for video in (model.fill(A, mask=HALF), model.edit(A, "b", mask=HALF, strength=0.8)):
        np.testing.assert_array_equal(video.frames[:, ~inside], A.frames[:, ~inside])
        assert (video.frames[:, inside] != A.frames[:, inside]).any()
    wide = model.outpaint(A, size=(40, 21))
    assert wide.frames.shape == (10, 21, 40, 3)
    np.testing.assert_array_equal(wide.frames[:, 1:19, 9:30], A.frames)


def test_strength_is_how_much_an_edit_changes(model):  # noqa: F811
    video = model.edit(A, "b", strength=[0.0, 0.0, 1.0])
    np.testing.assert_array_equal(video.frames[0], A.frames[0])
    change = lambda s: np.abs(model.edit(A, "b", strength=s).frames - A.frames.astype(float)).mean()
    assert change(0.0) == 0 and change(0.9) > change(0.2)


def test_all_verbs_are_one_program(model):  # noqa: F811
    """Law 8: the verbs differ in canvases alone."""
    sampler.denoise.clear_cache()
    for verb in ("animate", "extend after", "loop", "connect", "fill frames"):
        VERBS[verb][0](model)
    model.edit(A, "b")
    assert sampler.denoise._cache_size() == 1


def test_several_seeds_begin_differently_and_end_alike(model):  # noqa: F811
    one, two = (model.extend(A, before=1.0, seed=seed).frames for seed in (0, 1))
    np.testing.assert_array_equal(one[8:], two[8:])
    assert (one[:8] != two[:8]).any()


def test_windows_cover_a_clip_and_share_frames():
    for frames in (1, 16, 17, 18, 40, 481):
        windows = drafts.windows_of(frames, 17, 5)
        assert windows[0][0] == 0 and windows[-1][1] == frames
        for (_, stop, _), (at, end, fixed) in pairwise(windows):
            assert stop - at == fixed == 5 and end > stop
        assert all(stop - at <= 17 for at, stop, _ in windows)


def test_a_latent_may_change_as_much_as_its_least_certain_pixel():
    start = np.zeros((5, 16, 16), np.float32)
    start[3, 9, 2] = 0.7
    cells = canvas.cells(start, (4, 8, 8))
    assert cells.shape == (2, 2, 2)
    assert cells[1, 1, 0] == np.float32(0.7) and cells.sum() == np.float32(0.7)


def test_a_latent_goes_on_from_the_frames_of_it_that_are_known(model):  # noqa: F811
    known = (np.arange(10) < 7)[:, None, None]  # latents of 1, 4, 4 and 4 frames: the third is known by half
    made = drafts.canvas_of(model, drafts.draft(clip(10).frames, known, 8.0))
    np.testing.assert_array_equal(made.start[:, 0, 0], [0.0, 0.0, drafts.PARTLY, 1.0])
    frames = [prompting.midway(n, 4) for n in (1, 2, 3, 6, 7, 10, 11)]
    assert frames == [1, 2, 3, 3, 7, 7, 11]


def test_the_border_of_what_is_known_has_no_step():
    """A codec that is 20 too dark: beside known pixels the difference fades instead of jumping."""
    frames = np.full((4, 6, 20, 3), 120, np.uint8)
    known = np.broadcast_to(np.arange(20) < 10, (4, 6, 20))
    mended = drafts.spliced(drafts.draft(frames, known, 8.0), frames - 20)
    row = mended[1, 3, :, 0].astype(int)
    assert (row[:10] == 120).all() and row[-1] == 100
    assert np.abs(np.diff(row)).max() <= 5 and (np.diff(row) <= 0).all()


def test_shots_have_their_own_text_and_one_clip(model):  # noqa: F811
    shots = [requests.Shot(8, "a red"), requests.Shot(9, "moves", True)]
    item = requests.prepare(model, canvas.blank((5, 2, 2), 4), shots, "", 0, 0)
    assert item["ask"].tolist() == [0, 0, 0, 1, 1]  # latents begin at frames 0 1 5 9 13
    assert item["pos"][:, 0].tolist() == [0, 1, 2, 11, 12]
    batch = requests.pack([item, requests.prepare(model, canvas.blank((1, 2, 2), 4), "b", "", 0, 1)], 64, 64)
    assert batch["seg"][0, :6].tolist() == [1] * 5 + [2]
    assert batch["ask"][0, :6].tolist() == [1, 1, 1, 2, 2, 3]
    assert set(batch["txt_seg"][0]) == {0, 1, 2, 3} == set(batch["txt_seg"][1])


def test_a_step_cache_of_nothing_changes_nothing_and_a_large_one_looks_once(model):  # noqa: F811
    paint = lambda **how: model.generate("a", size=(16, 16), frames=5, steps=6, **how).frames
    np.testing.assert_array_equal(paint(), paint(cache=0.0))
    assert (paint(cache=1e9) != paint()).any()


def test_schedules(model):  # noqa: F811
    paint = lambda **how: model.generate("a", size=(16, 16), frames=1, **how).frames
    np.testing.assert_array_equal(paint(steps=2), paint(steps=[1, 0.5, 0]))
    np.testing.assert_array_equal(paint(guidance=3.0), paint(guidance=[3.0, 3.0]))
    assert (paint(guidance=[1.0, 5.0]) != paint(guidance=[5.0, 1.0])).any()


def test_mistakes_get_one_sentence(model, monkeypatch):  # noqa: F811
    def refused(about, call):
        with pytest.raises(InputError, match=about) as error:
            call()
        assert "\n" not in str(error.value)

    refused("adds no frame", lambda: model.extend(A))
    refused("0 frames cannot be painted", lambda: model.animate(clip(1), frames=0))
    refused("2 frames", lambda: model.loop(clip(1)))
    refused("frames 5-12", lambda: model.fill(A, missing=[(5, 12)]))
    refused("nothing is missing", lambda: model.fill(A))
    refused("9x9.*21x18", lambda: model.fill(A, mask=clip(1, 9, 9)))
    refused("3 frames.*10", lambda: model.fill(A, mask=clip(3)))
    refused("1.5", lambda: model.edit(A, "b", strength=1.5))
    refused("larger", lambda: model.outpaint(A, size=(10, 40)))
    refused("8 fps", lambda: model.interpolate(A, 4.0))
    refused("share", lambda: model.animate(clip(1), at=2.0))
    refused("outside", lambda: model.animate(keys={9.0: A}, seconds=1.0))
    refused("needs a picture", lambda: model.animate())
    refused("shots", lambda: model.storyboard([], size=(16, 16)))
    nan = float("nan")
    refused("nan", lambda: model.edit(A, "b", strength=nan))
    refused("nan", lambda: model.interpolate(A, nan))
    refused("inf", lambda: model.interpolate(A, float("inf")))
    refused("nan", lambda: model.extend(A, after=nan))
    refused("nan", lambda: model.animate(keys={nan: A}, frames=5))
    refused("nan", lambda: model.generate("a", cache=nan))
    refused("nan", lambda: model.generate("a", guidance=nan))
    refused("nan", lambda: model.generate("a", steps=[1, nan, 0]))
    codec = Model({"vae": model.config["vae"]}, {"vae": model.params["vae"]})
    for verb in (lambda: codec.extend(A, after=1.0), lambda: codec.animate(A), lambda: codec.edit(A, "b")):
        refused("only a VAE", verb)
    refused("fall from 1 to 0", lambda: model.generate("a", steps=[1, 0.2, 0.4, 0]))
    monkeypatch.setattr(requests, "free_memory", lambda: 10**6)
    refused(r"tokens.*GB.*largest that fits", lambda: model.generate("a", size=(2048, 2048), frames=1))


def test_progress_goes_one_way_through_all_parts(model):  # noqa: F811
    told = []
    model.extend(A, before=3.0, after=3.0, steps=2, progress=lambda *now: told.append(now))
    assert told == sorted(set(told)) and len({of for _, of in told}) == 1 and told[-1][0] == told[-1][1]


def test_every_verb_through_the_command(model, tmp_path, capsys):  # noqa: F811
    model.save(tmp_path / "m")
    for name, video in {"a.mp4": A, "b.mp4": B, "a.png": clip(1), "mask.png": HALF}.items():
        video.save(tmp_path / name)
    (tmp_path / "board.json").write_text(
        '{"size": "24x16", "shots": [{"prompt": "a", "seconds": 1}, {"prompt": "b", "seconds": 0.5, "cut": true}]}'
    )
    at = lambda *names: [tmp_path / name for name in names]
    verbs = {
        "image": (["a red circle", "--size", "48x32", "--preview"], (1, 48, 32)),
        "generate": (["a red circle", "--seconds", 3, "--size", "16x16"], (24, 16, 16)),  # in windows
        "animate": ([*at("a.png"), "a", "--key", f"0.5={tmp_path / 'b.mp4'}", "--frames", 9], (9, 21, 18)),
        "animate ": (["a red circle", "--key", f"0={tmp_path / 'a.png'}", "--frames", 5], (5, 21, 18)),  # a lone prompt
        "animate  ": ([*at("a.png"), "--frames", 5, "--size", "32x16"], (5, 32, 16)),
        "extend": ([*at("a.mp4"), "--before", 0.25, "--after", 0.25], (14, 21, 18)),
        "loop": ([*at("a.mp4"), "--seconds", 0.5], (14, 21, 18)),
        "connect": ([*at("a.mp4", "b.mp4"), "--hard", "--seconds", 0.5], (21, 21, 18)),
        "fill": ([*at("a.mp4"), "--missing", "3-5", "--mask", *at("mask.png")], (10, 21, 18)),
        "outpaint": ([*at("a.mp4"), "--size", "32x18"], (10, 32, 18)),
        "edit": ([*at("a.mp4"), "b", "--strength", "0.2,0.9"], (10, 21, 18)),
        "interpolate": ([*at("b.mp4"), "--fps", 16], (13, 21, 18)),
        "storyboard": ([*at("board.json")], (12, 24, 16)),
    }
    for verb, (args, (frames, width, height)) in verbs.items():
        out = tmp_path / f"out.{'png' if verb == 'image' else 'mp4'}"
        flags = ["--model", tmp_path / "m", "--steps", 2, "--out", out, "--sheet", tmp_path / "sheet.png"]
        assert cli.main([str(word) for word in (verb.strip(), *args, *flags)]) == 0, capsys.readouterr().err
        facts = json.loads(capsys.readouterr().out)
        assert facts.keys() == {"path", "width", "height", "frames", "fps", "seed", "seconds"}
        made = media.probe(out)
        assert (made["frames"], made["width"], made["height"]) == (frames, width, height)
        assert (facts["frames"], facts["width"], facts["height"]) == (frames, width, height)
        assert media.read(tmp_path / "sheet.png").width > 200
    assert media.probe(tmp_path / "out.preview.png")["width"] == 24


def test_a_picture_stays_a_picture(model, tmp_path, capsys):  # noqa: F811
    model.save(tmp_path / "m")
    clip(1).save(tmp_path / "a.png")
    for verb, *more in (("edit", "b"), ("outpaint", "--size", "32x18")):
        args = [verb, tmp_path / "a.png", *more, "--model", tmp_path / "m", "--steps", 2, "--out", tmp_path / "x.jpg"]
        assert cli.main([str(word) for word in args]) == 0, capsys.readouterr().err
        assert media.probe(tmp_path / "x.jpg")["frames"] == 1


def test_the_commands_mistakes_get_one_sentence(tmp_path, capsys):
    A.save(tmp_path / "a.mp4")
    (tmp_path / "board.json").write_text("{}")
    for args, about in (
        (["extend", tmp_path / "none.mp4", "--after", 1], "none.mp4"),
        (["fill", tmp_path / "a.mp4", "--missing", "ten"], "10-20"),
        (["edit", tmp_path / "a.mp4", "b", "--strength", "much"], "much"),
        (["storyboard", tmp_path / "board.json"], "shots"),
        (["animate", tmp_path / "a.mp4", "--key", "x"], "SECOND=IMAGE"),
        (["generate", "a", "--steps", "inf"], "whole number"),
        (["generate", "a", "--sheet", "s.pdf"], "a contact sheet is a picture"),
        (["generate", "a", "--best", "2", "--captioner", "tiny"], "no captioner"),
    ):
        try:
            code = cli.main([str(arg) for arg in (*args, "--out", tmp_path / "x.mp4")])
        except SystemExit as error:  # argparse's own
            code = error.code
        out, err = capsys.readouterr()
        assert code == 2 and out == "" and about in err.strip().splitlines()[-1]
