"""Many clips on one page: a row of frames for each, its caption under it."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sora_jax.errors import InputError
from sora_jax.media.writer import save_image

_GAP, _TEXT, _LABEL = 6, 15, 11  # pixels between things; font sizes of captions and of frame labels
_INK, _PALE, _PAPER, _GIVEN = (20, 20, 20), (120, 120, 120), (255, 255, 255), (220, 20, 120)


def contact_sheet(
    videos, captions: list[str] | None, path: str | Path, frames: int = 8, cell: int = 192, known=None
) -> Path:
    """Writes a sheet of `videos` (list of Video, of any sizes): a row each, up to `frames` evenly spaced frames in it.

    First and last frame are always there; under each its index and time, under the row the caption, wrapped. Cells are
    `cell` pixels wide: a smaller frame is magnified by a whole number without smoothing, a larger one reduced to fit.
    `known`: for each video which of its frames were given, [f] bool; they get a mark.
    Raises InputError: no videos, or not a caption for each.
    """
    if not videos:
        raise InputError("a contact sheet needs at least one video")
    captions = [""] * len(videos) if captions is None else list(captions)
    if len(captions) != len(videos):
        raise InputError(f"a contact sheet of {len(videos)} videos needs {len(videos)} captions, not {len(captions)}")
    columns = max(min(frames, len(video.frames)) for video in videos)
    width = max(columns * (cell + _GAP) + _GAP, 3 * cell)
    known = [np.zeros(len(video.frames), bool) for video in videos] if known is None else known
    rows = [_row(video, caption, frames, cell, width, given) for video, caption, given in zip(videos, captions, known)]
    sheet = Image.new("RGB", (width, _GAP + sum(row.height + 2 * _GAP for row in rows)), _PAPER)
    top = _GAP
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + 2 * _GAP
    return save_image(sheet, Path(path))


def _row(video, caption: str, frames: int, cell: int, width: int, known: np.ndarray) -> Image.Image:
    count = len(video.frames)
    indices = np.linspace(0, count - 1, min(frames, count)).round().astype(int)
    pictures = [_fitted(video.frames[index], cell) for index in indices]
    small, font = _font(_LABEL), _font(_TEXT)
    lines = _wrapped(caption, font, width - 2 * _GAP)
    text_top = pictures[0].height + _LABEL + _GAP
    row = Image.new("RGB", (width, text_top + len(lines) * (_TEXT + 5)), _PAPER)
    draw = ImageDraw.Draw(row)
    for column, (index, picture) in enumerate(zip(indices, pictures)):
        left = _GAP + column * (cell + _GAP)
        row.paste(picture, (left + (cell - picture.width) // 2, 0))
        label = f"{video.width}x{video.height}" if count == 1 else f"{index}   {index / video.fps:.2f} s"
        draw.text((left + cell / 2, picture.height + 2), label, _PALE, small, anchor="ma")
        if known[index]:
            edge = left + (cell - picture.width) // 2
            draw.rectangle((edge, 0, edge + picture.width - 1, picture.height - 1), outline=_GIVEN, width=4)
            draw.text((edge + picture.width - 8, 6), "given", _GIVEN, small, anchor="ra")
    for number, line in enumerate(lines):
        draw.text((_GAP, text_top + number * (_TEXT + 5)), line, _INK, font)
    return row


def _fitted(frame: np.ndarray, cell: int) -> Image.Image:
    height, width = frame.shape[:2]
    times = cell // max(height, width)
    if times >= 1:
        return Image.fromarray(frame.repeat(times, 0).repeat(times, 1))
    # A tall frame may be two cells high, so that a phone's clip is not a stamp.
    scale = min(cell / width, 2 * cell / height, 1.0)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.ImageFont:
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)  # knows more alphabets than Pillow's own
    except OSError:
        return ImageFont.load_default(size)


def _wrapped(text: str, font: ImageFont.ImageFont, width: int) -> list[str]:
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            while font.getlength(word) > width:  # one word too long for a line, or a script without spaces
                fits = max(1, next(n for n in range(len(word)) if font.getlength(word[: n + 1]) > width))
                lines += [line] * bool(line) + [word[:fits]]
                line, word = "", word[fits:]
            longer = f"{line} {word}" if line else word
            if font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines
