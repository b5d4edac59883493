"""What the values of the command's flags mean: each function reads one, or says in a sentence what it should be."""

import argparse
from pathlib import Path


def size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 96x64")
    return int(width), int(height)


def numbers(text: str) -> float | list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, nor several with commas between") from None
    return values[0] if len(values) == 1 else values


def steps(text: str) -> int | list[float]:
    values = numbers(text)
    if isinstance(values, list):
        return values
    if not values.is_integer():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number of steps nor levels such as 1,0.8,0.4,0")
    return int(values)


def span(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    if not first.isdecimal() or not (last or first).isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST-LAST, such as 10-20")
    return int(first), int(last or first)


def key(text: str) -> tuple[float, str]:
    second, _, path = text.partition("=")
    try:
        return float(second), path
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not SECOND=IMAGE, such as 1.5=b.png") from None


def words(text: str) -> dict[str, str | int]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and word for name, _, word in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=WORD,..., such as count=1,scale=large")
    return {name: int(word) if word.isdecimal() else word for name, _, word in pairs}


def whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up, such as 8")
    return int(text)


def lora(text: str) -> tuple[str, float, str]:
    path, equals, how = text.rpartition("=")
    if not equals or Path(text).exists():
        return text, 1.0, ""
    weight, colon, expert = how.partition(":")
    try:
        if colon and expert not in ("high", "low"):
            raise ValueError
        return path, float(weight), expert
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not FILE=WEIGHT, such as style.safetensors=0.8:low") from None


def pair(text: str) -> tuple[int, int]:
    host, _, hosts = text.partition("/")
    if not host.isdecimal() or not hosts.isdecimal() or int(host) >= int(hosts):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I below N, such as 0/4")
    return int(host), int(hosts)


def dollars(text: str) -> tuple[float, float]:
    values = numbers(text)
    if not isinstance(values, list) or len(values) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not IN,OUT, such as 0.15,0.60")
    return values[0], values[1]


def folder(text: str) -> str:
    """A folder to write into, made here: one that cannot be is told before the work begins, not after it."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is no folder: mount the bucket (gcsfuse), and give that path")
    try:
        Path(text).expanduser().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be a folder: {error.strerror}") from None
    return text
