"""Laws of other people's media: a file says how it wants to be seen; a bad file gets one sentence.

Every file here is a real one, made by the same encoders that make other people's.
"""

import gc
import io
import struct
import wave

import av
import numpy as np
import pytest
from PIL import Image

from sora_jax import media
from sora_jax.errors import InputError
from sora_jax.media import reader
from sora_jax.media.boxes import clean_aperture, declared_bytes
from tests.clips import clip, encode_file, flat, psnr

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


def test_many_files_share_one_filter_graph(tmp_path):
    """Each holds tens of MB of large footage until Python looks for cycles, and with few objects it seldom does."""
    path = clip(9, 48, 64, 8.0).save(tmp_path / "clip.mp4")
    whole = media.read(path).frames
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            np.testing.assert_array_equal(media.read(path).frames, whole)
        stream = media.frames(path)
        next(stream)  # two at once do not share one
        np.testing.assert_array_equal(media.read(path).frames, whole)
        np.testing.assert_array_equal(next(stream), whole[1])
        graphs = [thing for thing in gc.get_objects() if isinstance(thing, av.filter.Graph)]
        mine = {id(graph) for some in reader._idle.values() for graph in some}
        assert len(graphs) <= len(mine) + 1
    finally:
        gc.enable()


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
