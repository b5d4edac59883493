"""Hours of raw footage -> good clips: a list of times in the originals, every score, and a page that shows why.

    curate("footage/", "curated/", config)     # configs/curate.py has every threshold
    dataset.build("curated/", "clips/")        # cuts the kept clips out, once, straight into its shards

Two steps. The scan (`shots.py`, `scores.py`) reads each file once, on any Apache Beam runner, and writes what it saw of
every shot into shards that may be killed at any moment (`shards.py`). The verdict reads those shards alone: thresholds,
then duplicates over the whole set (`duplicates.py`); it takes seconds, so thresholds can be tried.

    OUT/shots-train.array_record-*   every shot of the footage: times, scores, hashes, a strip of three pictures
    OUT/clips.jsonl                  the clips to keep, one a line: file, first frame, crop, the file's captions, scores
    OUT/dropped.jsonl                the others, with the reasons
    OUT/report.html                  one page, nothing outside it
    OUT/report.json                  files that could not be read

No clip is written here: a list wastes nothing, and `build` encodes a kept clip once, from the original.
"""

import functools
import importlib.util
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from sora_jax.data import captions as beside
from sora_jax.data import curate_report, duplicates, scores, shards, shots, sources
from sora_jax.errors import InputError

AT_MOST = ("motion", "shake", "blur", "dark", "bright", "text")  # a score above such a threshold is a reason
NUMBERS = ("shot", "first", "frames", "total", "width", "height", "black")


def curate(
    src,
    out,
    config: ConfigDict,
    *,
    captions=None,
    shard_size: int | None = None,
    runner: str = "DirectRunner",
    beam: Sequence[str] = (),
) -> dict:
    """Scans the folder `src` of clips and images, and says in `out` which clips of it to keep.

    config: `scan` and `keep` of configs/curate.py. captions: as in `dataset.build`; they follow a file's clips.
    Returns {"out", "files", "skipped", "shots", "kept", "dropped": {reason: shots}, "hours", "kept_hours"}; when it was
    scanned in this process also "frames_per_core_second", and "decoding": the share of the CPU time that decoding was.
    Raises InputError: as `dataset.build`; OpenCV or PySceneDetect missing; a threshold that cannot be; nothing kept.
    """
    for module, package in (("cv2", "opencv-python-headless"), ("scenedetect", "scenedetect-headless")):
        if importlib.util.find_spec(module) is None:
            raise InputError(f"curation needs {package}: pip install 'sora_jax[curate]'")
    scan, keep = _checked(config)
    items, _, made_from = sources.folder(src, captions)
    if scan["text"] and not scores.can_read():
        print("text in the picture is not looked for: pip install 'sora_jax[ocr]'", file=sys.stderr)
        scan["text"] = False
    made_from.pop("fps")
    parts = [items[part.start : part.stop] for part in shards.split(len(items), shard_size)]
    work = functools.partial(_scan, Path(made_from["source"]), scan)
    shots.spent.clear()
    report = shards.write(out, "shots", _features(), parts, work, made_from | {"scan": scan}, runner, beam, _share)
    found = {"out": report["out"], "files": len(items), "skipped": report["skipped"]} | verdict(report["out"], keep)
    if shots.spent["cpu"] and not beam:
        found["frames_per_core_second"] = round(shots.spent["frames"] / shots.spent["cpu"], 1)
        share = 1 - shots.spent["scoring"] / shots.spent["cpu"]  # judged by a few frames: a pause may take it anywhere
        found["decoding"] = round(min(max(share, 0.0), 1.0), 3)
    return found


def verdict(out, keep: dict) -> dict:
    """Decides over the scanned shots at `out` and writes clips.jsonl, dropped.jsonl and report.html anew.

    Returns what `curate` says of shots. Raises InputError when none is kept, and where `out` is not a finished scan.
    """
    held = open_shots(out)
    rows = sorted(held, key=lambda row: (row["file"], row["first"]))
    why = [reasons(row, keep) for row in rows]
    good = [n for n, said in enumerate(why) if not said]
    good.sort(key=lambda n: (-rows[n]["crop"][2] * rows[n]["crop"][3], -rows[n]["frames"], n))  # the best one stays
    some = [(rows[n]["hashes"], rows[n]["colours"], (rows[n]["file"], rows[n]["shot"])) for n in good]
    for clip, other in duplicates.drop(some, keep["bits"], keep["levels"], keep["share"]).items():
        why[good[clip]].append(f"duplicate of {shots.name(rows[good[other]])}")
    lines = [_line(row) for row in rows]
    kept = [line for line, said in zip(lines, why) if not said]
    lost = [line | {"reasons": said} for line, said in zip(lines, why) if said]
    counts = Counter(said[0].split(" of ")[0] for said in why if said)
    lasts = [row["frames"] / row["fps"] / 3600 if row["kind"] == "video" else 0.0 for row in rows]
    bad = json.loads((held.path / "report.json").read_text())["skipped"]
    with shards.writing(held.path):
        shards.put(held.path / "report.html", curate_report.page(rows, why, keep, bad))
        shards.put(held.path / "dropped.jsonl", _jsonl(lost))
        shards.put(held.path / "clips.jsonl", _jsonl(kept))
    if not kept:
        most, times = counts.most_common(1)[0]
        raise InputError(
            f"none of the {len(rows)} shots was kept, {times} of them because: {most}; look at "
            f"{held.path / 'report.html'} and loosen --config.keep"
        )
    hours = {"hours": sum(lasts), "kept_hours": sum(hour for hour, said in zip(lasts, why) if not said)}
    facts = {"shots": len(rows), "kept": len(kept), "dropped": dict(sorted(counts.items()))}
    return facts | {key: round(value, 4) for key, value in hours.items()}


def reasons(row: dict, keep: dict) -> list[str]:
    """Why a shot is not worth keeping, on its own; [] when it is. What was not measured (nan) is no reason."""
    if row["black"]:
        return ["black"]
    said, video = [], row["kind"] == "video"
    if video and row["frames"] / row["fps"] < keep["seconds"]:
        said.append("short")
    if min(row["crop"][2:]) < keep["side"]:
        said.append("small")
    if row["change"] < keep["change"]:
        said.append("static")
    return said + [score for score in AT_MOST if row[score] > keep[score]]


def open_shots(path) -> shards.Records:
    """The shots at `path` by index: file, captions (list), kind, times in frames, crop [x, y, width, height], scores,
    hashes uint64 [k], colours uint8 [k 8 8 3], strip (JPEG bytes). Raises InputError when it holds no finished scan."""
    return shards.Records(path, "shots", _read)


# ------------------------------------------------------------------------------------------------ in and out


def _checked(config: ConfigDict) -> tuple[dict, dict]:
    scan, keep = config.scan.to_dict(), config.keep.to_dict()
    for key in ("size", "every", "seconds", "cut_ratio", "cut_content"):
        if not 0 < scan[key] < math.inf:
            raise InputError(f"scan.{key} must be above 0, not {scan[key]}")
    if scan["size"] < 64:
        raise InputError(f"scan.size must be at least 64 pixels, not {scan['size']}: less shows too little")
    if not 0 < keep["share"] <= 1:
        raise InputError(f"keep.share must be above 0 and at most 1, not {keep['share']}")
    if not 0 <= keep["bits"] <= duplicates.MOST:
        raise InputError(f"keep.bits must be 0 to {duplicates.MOST}, not {keep['bits']}")
    return scan, keep


def _scan(root: Path, scan: dict, part: Sequence, skipped: list) -> Iterator[dict]:
    for file, told in part:
        try:
            said = beside.sidecar(root / file) if told is None else told
            yield from shots.records(root / file, file, said, scan)
        except Exception as error:  # what was seen before the damage stays
            skipped.append(shards.skip(file, error))


def _share(record: dict) -> float:
    return record["frames"] / record["total"]


def _features():
    from tensorflow_datasets import features as f

    texts = dict.fromkeys(("file", "captions", "kind"), f.Text())
    data = dict.fromkeys(("hashes", "colours", "strip"), f.Scalar(np.object_))
    numbers = dict.fromkeys(NUMBERS, np.int32) | dict.fromkeys(("fps", *scores.NAMES), np.float32)
    return f.FeaturesDict({**texts, **data, **numbers, "crop": f.Tensor(shape=(4,), dtype=np.int32)})


def _read(values: dict) -> dict:
    row = {key: values[key][0].decode() for key in ("file", "captions", "kind")}
    row |= {key: values[key][0] for key in (*NUMBERS, "fps", *scores.NAMES, "strip")}
    row |= {"captions": json.loads(row["captions"]), "crop": list(values["crop"])}
    row["hashes"] = np.frombuffer(values["hashes"][0], np.uint64)
    return row | {"colours": np.frombuffer(values["colours"][0], np.uint8).reshape(-1, 8, 8, 3)}


def _line(row: dict) -> dict:
    """A line of clips.jsonl; its captions have the form of a sidecar's (`captions.texts`)."""
    facts = {key: row[key] for key in ("file", "first", "frames", "total")}
    facts |= {"name": shots.name(row), "fps": round(row["fps"], 4), "start": round(row["first"] / row["fps"], 3)}
    facts |= {"seconds": round(row["frames"] / row["fps"], 3), "crop": row["crop"]}
    facts |= {"size": [row["width"], row["height"]], "captions": row["captions"], "shot": row["shot"]}
    seen = {key: None if math.isnan(row[key]) else round(row[key], 3) for key in scores.NAMES}
    return facts | {"scores": seen}


def _jsonl(lines: list[dict]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
