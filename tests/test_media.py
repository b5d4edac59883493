"""Laws of media: what is written is what is read; a file says how it wants to be seen; a bad file gets one sentence.

Every file here is a real one, made by the same encoders that make other people's.
"""

import io
import resource
import struct
import subprocess
import sys
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from sora_jax import media
from sora_jax.errors import InputError
from sora_jax.media import Video
from sora_jax.media.boxes import clean_aperture, declared_bytes

MOVING = ["mp4", "mov", "m4v", "webm", "mkv", "avi", "gif", "png", "webp"]


def clip(frames=9, height=48, width=64, fps=8.0) -> Video:
    """A smooth picture in which a soft blob moves: nothing that half-resolution colour could not hold."""
    y, x = np.mgrid[:height, :width]
    shots = []
    for f in range(frames):
        blob = np.exp(-((x - width * (f + 1) / (frames + 2)) ** 2 + (y - height / 2) ** 2) / 200)
        shots.append(np.stack([200 * x / width, 200 * y / height + 50 * blob, 90 + 100 * blob + 4 * f], -1))
    return Video(np.stack(shots).clip(0, 255).astype(np.uint8), fps)


def psnr(a, b) -> float:
    return 10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2)))


def encode_file(path, pictures, codec="libx264", pixels="yuv420p", times=None, rate=25, prepare=lambda stream: None):
    """Writes pictures (arrays, or (array, format)) with PyAV alone; times in milliseconds make the rate variable."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        first = pictures[0][0] if isinstance(pictures[0], tuple) else pictures[0]
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], pixels
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        prepare(stream)
        for index, picture in enumerate(pictures):
            array, kind = picture if isinstance(picture, tuple) else (picture, "rgb24")
            frame = av.VideoFrame.from_ndarray(array, format=kind)
            frame.pts = index if times is None else times[index]
            frame.time_base = 1 / Fraction(rate) if times is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def flat(value, height=32, width=48):
    return np.full((height, width, 3), value, np.uint8)


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


# How a file wants to be seen


def corners(height=32, width=48):
    """Red top left, green top right, blue bottom left, white bottom right."""
    picture = np.full((height, width, 3), 255, np.uint8)
    h, w = height // 2, width // 2
    picture[:h, :w], picture[:h, w:], picture[h:, :w] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return picture


ORIENTATIONS = {  # (counter-clockwise degrees, mirrored left to right) -> the picture
    (0, False): lambda p: p,
    (90, False): lambda p: np.rot90(p, 1),
    (180, False): lambda p: np.rot90(p, 2),
    (-90, False): lambda p: np.rot90(p, -1),
    (0, True): lambda p: p[:, ::-1],
}


@pytest.mark.parametrize("turn", list(ORIENTATIONS), ids=str)
def test_display_matrix(tmp_path, turn):
    degrees, mirrored = turn
    prepare = lambda stream: stream.set_display_rotation(degrees, hflip=mirrored)
    path = encode_file(tmp_path / "phone.mp4", [corners()] * 3, prepare=prepare)
    want = ORIENTATIONS[turn](corners())
    got = media.read(path)
    assert got.frames.shape[1:] == want.shape
    assert psnr(got.frames[0], want) > 20, "the right corners, at worst 13 dB otherwise"
    told = media.probe(path)
    assert (told["height"], told["width"]) == want.shape[:2]


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    Image.fromarray(corners()).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    assert psnr(media.read(tmp_path / "phone.jpg").frames[0], np.rot90(corners(), -1)) > 20


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_alpha_of_images_is_composited_on_white(tmp_path, suffix):
    rgba = np.zeros((16, 24, 4), np.uint8)
    rgba[:, :8] = (255, 0, 0, 255)
    if suffix != "gif":
        rgba[:, 8:16] = (0, 0, 0, 128)
    first = Image.fromarray(rgba)
    second = Image.fromarray(np.roll(rgba, 4, 0))
    save = {"lossless": True} if suffix == "webp" else {"disposal": 2} if suffix == "gif" else {}
    first.save(tmp_path / f"still.{suffix}", **({} if suffix == "gif" else save))
    first.save(tmp_path / f"moving.{suffix}", save_all=True, append_images=[second], duration=100, **save)
    for name in ("still", "moving"):
        frame = media.read(tmp_path / f"{name}.{suffix}").frames[0]
        assert frame[4, 4].tolist() == [255, 0, 0] and frame[4, 20].tolist() == [255, 255, 255]
        if suffix != "gif":
            assert frame[4, 12].tolist() == [127, 127, 127]


@pytest.mark.parametrize("codec, name, pixels", [("qtrle", "a.mov", "argb"), ("libvpx-vp9", "a.webm", "yuva420p")])
def test_alpha_of_video_is_composited_on_white(tmp_path, codec, name, pixels):
    rgba = np.zeros((32, 48, 4), np.uint8)
    rgba[:, :24] = (0, 0, 255, 255)
    frames = media.read(encode_file(tmp_path / name, [(rgba, "rgba")] * 3, codec, pixels)).frames
    assert frames.shape == (3, 32, 48, 3)
    assert frames[1, 16, 4].astype(int) == pytest.approx([0, 0, 255], abs=6) and frames[1, 16, 44].astype(
        int
    ) == pytest.approx([255] * 3, abs=3)


@pytest.mark.parametrize(
    "codec, pixels, name",
    [
        ("libx265", "yuv420p10le", "ten.mp4"),
        ("libx264", "yuv422p10le", "ten.mkv"),
        ("libx264", "gray", "gray.mp4"),
        ("ffv1", "gray16le", "gray.mkv"),
        ("libx264", "yuvj420p", "full.mp4"),
        ("mjpeg", "yuvj444p", "motion.avi"),
        ("mpeg4", "yuv420p", "old.avi"),
        ("mpeg2video", "yuv420p", "old.mpg"),
        ("libvpx", "yuv420p", "vp8.webm"),
    ],
)
def test_other_peoples_pixels(tmp_path, codec, pixels, name):
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 32, 0).repeat(3, 2)
    full = lambda stream: setattr(stream.codec_context, "color_range", 2 if pixels[:4] in ("gray", "yuvj") else 0)
    video = media.read(encode_file(tmp_path / name, [ramp] * 5, codec, pixels, prepare=full))
    assert video.frames.shape == (5, 32, 64, 3) and video.fps == 25
    assert psnr(video.frames, np.stack([ramp] * 5)) > 30


def test_grey_sixteen_bit_and_palette_images(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(8, 0)
    want = ramp[None, ..., None].repeat(3, 3)
    Image.fromarray(ramp).save(tmp_path / "l.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "i16.png")
    Image.fromarray(ramp).convert("P").save(tmp_path / "p.png")
    for name in ("l.png", "i16.png", "p.png"):
        assert (media.read(tmp_path / name).frames == want).all(), name


def test_untagged_colour_is_guessed_as_players_do(tmp_path):
    """The same untagged bytes: BT.601 for small pictures, BT.709 for high definition."""
    for height, width, matrix in ((48, 64, (0.299, 0.114)), (720, 1280, (0.2126, 0.0722))):
        red, blue = matrix
        u, v = -red / (2 * (1 - blue)), 0.5  # of pure red
        planes = np.concatenate(
            [
                np.full(height * width, 16 + 219 * red),
                np.full(height * width // 4, 128 + 224 * u),
                np.full(height * width // 4, 128 + 224 * v),
            ]
        )
        raw = planes.round().astype(np.uint8).reshape(height * 3 // 2, width)
        with av.open(str(tmp_path / "raw.mkv"), "w") as container:
            stream = container.add_stream("ffv1", rate=5)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(raw, format="yuv420p")))
            container.mux(stream.encode())
        assert media.read(tmp_path / "raw.mkv").frames[0, 5, 5].astype(int) == pytest.approx([255, 0, 0], abs=3)


# Bad files


def song(path):
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1), out.setsampwidth(2), out.setframerate(8000)
        out.writeframes(b"\0\1" * 8000)
    return path


def silent_track(path, codec):
    """A container with sound only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def one_sentence(path, words):
    for call in (media.read, media.probe, lambda p: list(media.frames(p))):
        with pytest.raises(InputError) as caught:
            call(path)
        assert str(path) in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm", "avi"])
def test_cut_short(tmp_path, suffix):
    """Wherever a file is cut, it is an error and never a shorter clip."""
    data = clip(24).save(tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    for part in (0.02, 0.3, 0.6, 0.95):
        path.write_bytes(data[: int(len(data) * part)])
        one_sentence(path, "cut short")
    path.write_bytes(data[:-1])
    one_sentence(path, "cut short")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp"])
def test_cut_short_images(tmp_path, suffix):
    data = clip(1).save(tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    for part in (0.3, 0.8):
        path.write_bytes(data[: int(len(data) * part)])
        one_sentence(path, "cut short")


def test_not_media(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    one_sentence(tmp_path / "empty.mp4", "is empty")
    for name in ("text.mp4", "text.txt", "list.m3u8"):
        (tmp_path / name).write_text(
            "#EXTM3U\n#EXTINF:1,\nclip.mp4\n" if name == "list.m3u8" else "hello, world\n" * 50
        )
        one_sentence(tmp_path / name, "is not a video or an image")
    one_sentence(song(tmp_path / "song.wav"), "only sound")
    one_sentence(silent_track(tmp_path / "song.m4a", "aac"), "only sound")
    one_sentence(tmp_path / "missing.mp4", "no such file")
    one_sentence(tmp_path, "is a folder")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    one_sentence(tmp_path / "noise.mp4", "noise.mp4")
    with pytest.raises(InputError, match="clip 7 is not a video"):
        media.decode(b"nothing at all", name="clip 7")


def test_sound_beside_the_picture_and_a_cover_are_no_trouble(tmp_path):
    with av.open(str(tmp_path / "talk.mp4"), "w") as container:
        sound, sight = container.add_stream("aac", rate=48000), container.add_stream("libx264", rate=10)
        sight.width, sight.height, sight.pix_fmt = 48, 32, "yuv420p"
        for index in range(10):
            container.mux(sight.encode(av.VideoFrame.from_ndarray(flat(20 * index), format="rgb24")))
            for piece in range(5):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 48000, (5 * index + piece) * 960
                container.mux(sound.encode(frame))
        container.mux(sight.encode())
        container.mux(sound.encode())
    assert media.read(tmp_path / "talk.mp4").frames.shape == (10, 32, 48, 3)


def test_wrong_names_to_write(tmp_path):
    video = clip(3)
    with pytest.raises(InputError, match="one frame"):
        video.save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"cannot write '\.xyz'.*\.mp4"):
        video.save(tmp_path / "a.xyz")
    with pytest.raises(InputError, match="50"):
        clip(3, fps=60).save(tmp_path / "a.gif")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        video.save(tmp_path / "file" / "a.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_size_that_changes_on_the_way(tmp_path):
    """Two sizes in one stream, as screen sharing records them."""
    small = encode_file(tmp_path / "s.m2v", [flat(50)] * 5, "mpeg2video")
    large = encode_file(tmp_path / "l.m2v", [flat(50, 64, 96)] * 5, "mpeg2video")
    (tmp_path / "both.m2v").write_bytes(small.read_bytes() + large.read_bytes())
    with pytest.raises(InputError, match="changes its size from 48x32 to 96x64"):
        media.read(tmp_path / "both.m2v")


def test_boxes_that_lie_are_survived(tmp_path):
    for head in (b"\x1a\x45\xdf\xa3\x00", b"\0\0\0\x08ftyp" + struct.pack(">I4sQ", 1, b"moov", 3), b"RIFF\0\0\0\0AVI "):
        declared_bytes(io.BytesIO(head))
        assert clean_aperture(io.BytesIO(head)) is None
        (tmp_path / "lie.mp4").write_bytes(head)
        one_sentence(tmp_path / "lie.mp4", "lie.mp4")


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
