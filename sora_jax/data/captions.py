"""What is said of a clip: the captions that lie beside it, and the one structure for what a captioner says.

Beside clips there is a .txt or .json per clip, or one .jsonl or .csv table for a folder; a clip's captions become a
list of distinct texts in the order they were given: `caption`, `captions`, `long`, `short`.

A captioner, a person or the world gives a `Caption`. It is what a dataset of clips keeps (as JSON, in place of the
list of texts), what an endpoint is asked for, what prompts are expanded to and what training draws from:

    short       one clause, as people write prompts: "a red circle moves right"
    long        all there is to see: subjects, places, actions in order, background, camera, style
    camera      what the camera does: "the camera pans left"; "" where nothing is known
    style       how it looks, not what is in it: "flat animation", "handheld footage at dusk"; "" where nothing is known
    confidence  how sure who says so is, 0 to 1; 1 for people and the world
    source      who says so: "world", "person", "captioner:NAME", "openai:URL#model"
"""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sora_jax.errors import InputError

KEYS = ("caption", "captions", "long", "short")
TABLES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")  # looked for in a folder of clips


class Caption(NamedTuple):
    """See the file's head."""

    short: str
    long: str
    camera: str = ""
    style: str = ""
    confidence: float = 1.0
    source: str = ""


def caption_of(said: object, source: str, longest: int = 4000) -> Caption:
    """The Caption of an object with its keys, as a captioner answers; what is missing beside long is "" or unsure
    (0.5).

    Raises InputError, saying what is wrong, for anything else: no long caption, another type, a text above `longest`.
    """
    if not isinstance(said, dict):
        raise InputError(f"a caption is an object of {', '.join(Caption._fields)}, not {said!r:.60}")
    found = {}
    for name in ("short", "long", "camera", "style"):
        text = said.get(name) or ""
        if not isinstance(text, str) or len(text) > longest:
            raise InputError(f"the {name} caption must be a text of at most {longest} characters, not {text!r:.60}")
        found[name] = " ".join(text.split())
    if not found["long"]:
        raise InputError("there is no long caption")
    sure = said.get("confidence", 0.5)
    if isinstance(sure, bool) or not isinstance(sure, int | float) or not 0 <= sure <= 1:
        raise InputError(f"the confidence must be a number from 0 to 1, not {sure!r:.60}")
    found["short"] = found["short"] or found["long"]
    return Caption(**found, confidence=float(sure), source=source)


def distinct(texts: Iterable[str]) -> list[str]:
    """Without empty ones and repetitions, whitespace made single; the order stays."""
    return list(dict.fromkeys(text for text in (" ".join(t.split()) for t in texts) if text))


def texts(said, where: str) -> list[str]:
    """The captions in a piece of JSON: a text, a list of texts, or an object with some of KEYS.

    Raises InputError naming `where` (file and line) when it is anything else.
    """
    if isinstance(said, dict):
        found = [t for key in KEYS if said.get(key) is not None for t in texts(said[key], f"{where}, key {key!r}")]
        if not found and not any(key in said for key in KEYS):
            raise InputError(f"{where} has none of the keys {', '.join(KEYS)}; it has {', '.join(said) or 'no keys'}")
        return distinct(found)
    if isinstance(said, str):
        return distinct([said])
    if isinstance(said, list) and all(isinstance(text, str) for text in said):
        return distinct(said)
    raise InputError(f"{where}: a caption must be a text, a list of texts or an object of them, not {said!r:.60}")


def sidecar(clip: Path) -> list[str]:
    """The captions in `clip`'s .json or .txt of the same name; none when there is no such file.

    Raises InputError with the line where that file cannot be read.
    """
    beside = clip.with_suffix(".json")
    if beside.is_file():
        return texts(_json(_read(beside), str(beside), 1), str(beside))
    beside = clip.with_suffix(".txt")
    return distinct([_read(beside)]) if beside.is_file() else []


def table(path: Path, folder: Path) -> dict[str, list[str]]:
    """{clip, relative to `folder`: captions} of a .jsonl (objects) or .csv (header) with `file` and some of KEYS.

    Several lines of one file add up. Raises InputError with the number of the line that cannot be read.
    """
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise InputError(f"captions must be a .jsonl or .csv file with file and caption in each line, not {path}")
    found: dict[str, list[str]] = {}
    for number, said in _lines(path):
        where = f"{path}, line {number}"
        if not isinstance(said, dict) or not isinstance(said.get("file"), str):
            raise InputError(f"{where}: no file is named; a line needs file and caption")
        file = Path(said["file"])
        if file.is_absolute() and file.is_relative_to(folder.absolute()):
            file = file.relative_to(folder.absolute())
        found.setdefault(file.as_posix(), []).extend(texts(said, where))
    if not found:
        raise InputError(f"{path} holds no captions")
    return {file: distinct(all_of_it) for file, all_of_it in found.items()}


def _lines(path: Path) -> Iterable[tuple[int, object]]:
    text = _read(path)
    if path.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, _json(line, str(path), number)
        return
    rows = csv.DictReader(text.splitlines(keepends=True), strict=True)
    try:
        if not {"file"} <= set(rows.fieldnames or ()) or not set(KEYS) & set(rows.fieldnames or ()):
            raise InputError(f"{path}, line 1: the header must name file and caption, not {rows.fieldnames}")
        for row in rows:
            if None in row or None in row.values():
                raise InputError(f"{path}, line {rows.line_num}: {len(rows.fieldnames)} columns were expected")
            yield rows.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num + 1}: {error}") from error


def _json(text: str, path: str, first_line: int):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {first_line + error.lineno - 1}: this is not JSON ({error.msg})") from error


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: this is not UTF-8 text; save it as UTF-8") from error
