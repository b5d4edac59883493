"""Laws of media: what is written is what is read, at the times that were asked for."""

import resource
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

from sora_jax import media
from sora_jax.errors import InputError
from sora_jax.media import Video
from sora_jax.media.boxes import clean_aperture, declared_bytes
from tests.clips import clip, encode_file, flat, psnr

MOVING = ["mp4", "mov", "m4v", "webm", "mkv", "avi", "gif", "png", "webp"]


# What is written is what is read


@pytest.mark.parametrize("suffix", MOVING)
@pytest.mark.parametrize("size", [(9, 48, 64, 8.0), (7, 47, 65, 30000 / 1001), (5, 33, 48, 25.0)], ids=str)
def test_written_clip_keeps_size_count_rate_and_picture(tmp_path, suffix, size):
    video = clip(*size)
    path = video.save(tmp_path / f"clip.{suffix}")
    again, told = media.read(path), media.probe(path)
    assert again.frames.shape == video.frames.shape
    # GIF tells time in 10 ms and WebP in 1 ms
    assert again.fps == pytest.approx(video.fps, rel={"gif": 0.03, "webp": 0.01}.get(suffix, 1e-6))
    assert psnr(video.frames, again.frames) > (30 if suffix == "gif" else 35)
    assert abs(np.mean(video.frames.astype(float) - again.frames)) < 0.7, "no brightness is lost or gained on the way"
    assert (told["width"], told["height"], told["frames"]) == (video.width, video.height, len(video.frames))
    assert told["fps"] == again.fps and told["kind"] == "video"
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no temporary is left"


def test_png_is_exact_also_animated(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (4, 17, 23, 3), np.uint8)
    assert (media.read(Video(noise[:1]).save(tmp_path / "one.png")).frames == noise[:1]).all()
    many = media.read(Video(noise, 12).save(tmp_path / "many.png"))
    assert (many.frames == noise).all() and many.fps == 12


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "gif"])
def test_one_frame_is_an_image(tmp_path, suffix):
    video = clip(1, 31, 45)
    path = video.save(tmp_path / f"image.{suffix}")
    assert Image.open(path).size == (45, 31)
    assert psnr(media.read(path).frames, video.frames) > 30
    told = media.probe(path)
    assert (told["kind"], told["frames"], told["width"], told["height"]) == ("image", 1, 45, 31)


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif"])
def test_a_still_scene_and_a_single_pixel_survive(tmp_path, suffix):
    still = Video(np.zeros((6, 1, 1, 3), np.uint8) + 200, 8)
    again = media.read(still.save(tmp_path / f"still.{suffix}"))
    assert again.frames.shape == still.frames.shape and abs(int(again.frames.mean()) - 200) <= 2


def test_repeated_frames_joined_by_the_encoder_come_back(tmp_path):
    frames = np.concatenate([np.repeat(clip(1).frames, 5, 0), clip(3).frames])
    again = media.read(Video(frames, 8).save(tmp_path / "held.webp"))
    assert len(again.frames) == 8 and again.fps == pytest.approx(8, rel=0.01)


def test_mp4_is_what_browsers_play(tmp_path):
    for height, width in ((48, 64), (47, 65)):
        path = clip(5, height, width).save(tmp_path / "web.mp4")
        data = path.read_bytes()
        assert 0 < data.index(b"moov") < data.index(b"mdat"), "the index comes first"
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            context = stream.codec_context
            assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
            assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (1, 1, 1, 1)
            frame = next(container.decode(stream))
            assert (frame.width, frame.height) == (width + width % 2, height + height % 2)
        with open(path, "rb") as file:
            assert declared_bytes(file) == len(data)
            assert clean_aperture(file) == (None if height == 48 else (65, 47, -0.5, -0.5))


def test_bytes_and_page(tmp_path):
    video = clip(5, 47, 65)
    again = media.decode(media.encode(video))
    assert again.frames.shape == video.frames.shape and again.fps == 8
    image = clip(1)
    assert (media.decode(media.encode(image)).frames == image.frames).all()
    page = video._repr_html_()
    assert "data:video/mp4;base64," in page and all(word in page for word in ("autoplay", "loop", "muted"))
    assert "data:image/png;base64," in image._repr_html_()
    assert repr(video) == "Video(5 frames, 65x47, 8 fps)" and video.seconds == 5 / 8
    side_by_side = media.Gallery([video, image], ["1 < 2", "one"])._repr_html_()
    assert video._repr_html_() in side_by_side and image._repr_html_() in side_by_side
    assert side_by_side.index("1 &lt; 2") < side_by_side.index("image/png") < side_by_side.index(">one<")
    with pytest.raises(InputError, match="2 videos needs as many captions, not 1"):
        media.Gallery([video, image], ["one"])


@pytest.mark.parametrize("size", [(47, 65), (64, 96)])
def test_the_same_clip_is_the_same_bytes(size):
    video = clip(5, *size)
    assert len({media.encode(video) for _ in range(40)}) == 1


# Streaming


def test_writer_and_frames_stream(tmp_path):
    video = clip(12)
    with media.Writer(tmp_path / "new" / "long.mp4", 64, 48, 8) as writer:
        writer.write(video.frames[:5])
        assert not (tmp_path / "new" / "long.mp4").exists(), "nothing half-written under the target's name"
        writer.write(video.frames[5])
        writer.write(video.frames[6:])
    stream = media.frames(tmp_path / "new" / "long.mp4")
    assert next(stream).shape == (48, 64, 3)
    assert sum(1 for _ in stream) == 11
    wrong = pytest.raises(InputError, match=r"\[f 48 64 3\].*\[12, 47, 64, 3\]")
    with wrong, media.Writer(tmp_path / "other.mp4", 64, 48, 8) as writer:
        writer.write(video.frames[:, 1:])
    with pytest.raises(InputError, match="no frames"), media.Writer(tmp_path / "other.mp4", 64, 48, 8):
        pass
    assert not (tmp_path / "other.mp4").exists()


@pytest.mark.parametrize("name", ["even.mp4", "odd.mp4", "odd.webm", "a.gif", "a.png"])
def test_frames_come_shrunk(tmp_path, name):
    video = clip(6, 47 if name.startswith("odd") else 48, 65 if name.startswith("odd") else 64)
    video.save(tmp_path / name)
    small = np.stack(list(media.frames(tmp_path / name, within=32)))
    assert small.shape == (6, round(video.height * 32 / video.width), 32, 3)
    ours = [np.asarray(Image.fromarray(x).resize((32, small.shape[1]), Image.Resampling.BOX)) for x in video.frames]
    assert psnr(small, np.stack(ours)) > 28
    assert next(media.frames(tmp_path / name, within=1000)).shape == video.frames.shape[1:]
    rest = np.stack(list(media.frames(tmp_path / name, start=2 / video.fps)))
    assert (rest == media.read(tmp_path / name).frames[2:]).all()


def test_strict_frames_hide_no_damage(tmp_path):
    clip(30, 96, 128).save(tmp_path / "a.mp4")
    whole = bytearray((tmp_path / "a.mp4").read_bytes())
    assert len(list(media.frames(tmp_path / "a.mp4", strict=True))) == 30
    where = len(whole) * 2 // 3
    whole[where : where + 20] = bytes(20)
    (tmp_path / "b.mp4").write_bytes(whole)
    with pytest.raises(InputError, match="damaged"):
        list(media.frames(tmp_path / "b.mp4", strict=True))


def test_interrupted_writing_keeps_the_old_file(tmp_path):
    path = clip(3).save(tmp_path / "a.mp4")
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), media.Writer(path, 64, 48, 8) as writer:
        writer.write(clip(9).frames)
        raise KeyboardInterrupt
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_full_disk_is_a_sentence_and_leaves_nothing(tmp_path):
    """A limit on file size stands in for the full disk: the same write fails in the same place."""
    code = (
        "import numpy as np, sys\nfrom sora_jax import media\nfrom sora_jax.errors import InputError\n"
        "noise = np.random.default_rng(0).integers(0, 256, (40, 96, 96, 3), np.uint8)\n"
        "for path in sys.argv[1:]:\n"
        "    try: media.Video(noise, 8).save(path)\n"
        "    except InputError as error: print(error)\n"
    )
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    paths = [str(tmp_path / name) for name in ("a.mp4", "a.webm", "a.png")]
    run = [sys.executable, "-c", code, *paths]
    out = subprocess.run(run, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert [line.split(" cannot be written")[0] for line in out.stdout.splitlines()] == paths, out.stderr
    assert list(tmp_path.iterdir()) == []


def test_max_frames_and_fps_are_checked(tmp_path):
    path = clip(9).save(tmp_path / "a.mp4")
    assert len(media.read(path, max_frames=4).frames) == 4
    for wrong in (0, -1, float("nan"), "fast"):
        with pytest.raises(InputError, match="fps must be"):
            media.read(path, fps=wrong)
    with pytest.raises(InputError, match="max_frames"):
        media.read(path, max_frames=0)
    with pytest.raises(InputError, match="uint8 array"):
        Video(np.zeros((2, 8, 8, 3), np.float32), 8)


# Time


def test_variable_rate_is_resampled_by_timestamps(tmp_path):
    """Shown: 0 from 0 ms, 60 from 100 ms, 120 from 600 ms, 180 from 700 ms, 240 from 900 to 1000 ms."""
    times, values = [0, 100, 600, 700, 900], [0, 60, 120, 180, 240]
    for name in ("vfr.mp4", "vfr.mkv"):
        path = encode_file(tmp_path / name, [flat(v) for v in values], times=times)
        video = media.read(path, fps=10)
        shown = video.frames.mean((1, 2, 3))[:10]
        assert shown == pytest.approx([0, 60, 60, 60, 60, 60, 120, 180, 180, 240], abs=6)
        assert video.fps == 10 and media.probe(path, fps=10)["frames"] == len(video.frames)
        twice = media.read(path, fps=20).frames.mean((1, 2, 3))[:19]
        assert twice == pytest.approx(np.repeat(shown, 2)[:19], abs=6)
        assert len(media.read(path).frames) == media.probe(path)["frames"]


def test_halving_and_doubling_the_rate(tmp_path):
    path = encode_file(tmp_path / "steps.mp4", [flat(10 * i) for i in range(24)], rate=24)
    level = lambda fps: (media.read(path, fps=fps).frames.mean((1, 2, 3)) / 10).round()
    assert (level(None) == np.arange(24)).all()
    assert (level(12) == np.arange(0, 24, 2)).all()
    assert (level(8) == np.arange(0, 24, 3)).all()
    assert (level(48) == np.arange(24).repeat(2)).all()


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm", "avi", "gif"])
def test_reading_from_the_middle(tmp_path, suffix):
    """Starting at a frame's time gives what the whole clip has from there, whatever the distance of its key frames."""
    path = tmp_path / f"steps.{suffix}"
    if suffix == "gif":
        Video(np.stack([flat(6 * i) for i in range(40)]), 10).save(path)
    else:
        short = lambda stream: setattr(stream.codec_context, "gop_size", 7)
        codec = "libvpx-vp9" if suffix == "webm" else "libx264"
        encode_file(path, [flat(6 * i) for i in range(40)], codec, rate=10, prepare=short)
    whole = media.read(path)
    for k in (1, 6, 7, 8, 13, 14, 22, 39):
        part = media.read(path, start=k / 10, max_frames=3)
        assert (part.frames == whole.frames[k : k + 3]).all() and len(part.frames) == min(3, 40 - k), k
    assert len(media.read(path, start=2.05, fps=5).frames) == 10
    assert (media.read(path, start=100).frames == whole.frames[-1:]).all()


def test_animation_delays(tmp_path):
    """GIF delays of 10 ms or less are 100 ms, as in browsers; frames that were joined are told apart again."""
    pictures = [Image.fromarray(flat(v)) for v in (0, 80, 160, 240)]
    rest = {"save_all": True, "append_images": pictures[1:], "loop": 0}
    pictures[0].save(tmp_path / "fast.gif", duration=[0, 0, 0, 0], **rest)
    assert media.probe(tmp_path / "fast.gif")["fps"] == pytest.approx(10)
    pictures[0].save(tmp_path / "held.webp", duration=[125, 375, 125, 125], **rest)
    held = media.read(tmp_path / "held.webp")
    assert held.fps == pytest.approx(8) and held.frames.mean((1, 2, 3)) == pytest.approx(
        [0, 80, 80, 80, 160, 240], abs=3
    )


# The sheet


def test_contact_sheet_mixed_sizes(tmp_path):
    big = clip(20, 90, 400)
    videos = [clip(9, 64, 64), clip(1, 48, 96), big, clip(3, 128, 32)]
    captions = ["a red ball " * 60, "short", "", "one\ntwo wordthatisfartoolongtofitononelineofthesheet" + "x" * 400]
    path = media.contact_sheet(videos, captions, tmp_path / "sheet.png", frames=4)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] == 4 * (192 + 6) + 6
    first = sheet[6 : 6 + 192, 6 : 6 + 192]
    assert (first == videos[0].frames[0].repeat(3, 0).repeat(3, 1)).all(), "64 pixels, three times, exact"
    last = sheet[6 : 6 + 192, 6 + 3 * 198 : 6 + 3 * 198 + 192]
    assert (last == videos[0].frames[-1].repeat(3, 0).repeat(3, 1)).all(), "the last frame is there"
    assert (media.contact_sheet([big], None, tmp_path / "deep" / "b.png")).exists()
    with pytest.raises(InputError, match="4 captions, not 2"):
        media.contact_sheet(videos, ["a", "b"], path)
    with pytest.raises(InputError, match="at least one"):
        media.contact_sheet([], [], path)
