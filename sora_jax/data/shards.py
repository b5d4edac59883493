"""A dataset folder that may be killed at any moment: each shard is there whole, or not at all.

The folder is a TFDS dataset of array_record shards, so `tfds.builder_from_directory(out)` opens it anywhere, and
`Records` reads it by index ten thousand times a second without TensorFlow. One Apache Beam element writes one shard:
to a temporary name, then renamed. Whoever runs the same command again finds the finished shards and makes the others;
a record's bytes depend on its source alone, so killed and rerun == never killed.

    OUT/build.json                                  what the dataset is made from; another one is refused
    OUT/clips-train.array_record-00000-of-00012     the shards
    OUT/said/00000-of-00012.json                    what that shard skipped, and its largest record, for report.json
    OUT/features.json, dataset_info.json            TFDS metadata
    OUT/report.json                                 written last: the dataset is complete
"""

import contextlib
import copy
import functools
import hashlib
import json
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from sora_jax.errors import InputError, local

LOG = 30  # seconds between lines of progress in a log file
LOCAL = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


def digest(thing) -> str:
    """SHA-256 (first 16 hex digits) of a JSON-able thing: tells two sources apart in build.json."""
    return hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()[:16]


def split(count: int, shard_size: int | None) -> list[range]:
    """0..count in consecutive ranges, one per shard: of `shard_size`, else of at most 256, few enough for 32 shards."""
    if shard_size is not None and shard_size < 1:
        raise InputError(f"shard_size must be at least 1, not {shard_size}")
    size = shard_size or max(1, min(256, -(-count // 32)))
    return [range(i, min(i + size, count)) for i in range(0, count, size)]


def write(
    out,
    name: str,
    features,
    parts: Sequence[Sequence],
    examples: Callable[[Sequence, list], Iterable[dict]],
    made_from: dict,
    runner: str = "DirectRunner",
    beam: Sequence[str] = (),
    share: Callable[[dict], float] | None = None,
    size: Callable[[dict], Sequence[int]] | None = None,
) -> dict:
    """Writes the dataset folder `out`, one shard for each of `parts`, and returns its report.

    `examples(part, skipped)` yields the records of a part, in order, and appends {"file", "reason"} to `skipped` for
    what it has to leave out. It and `parts` travel to Beam's workers, so they must pickle. `out` must be a path that
    all workers see. `made_from` (JSON-able) tells this dataset from any other. `share(record)`: how much of a source
    a record is, when it is not all of it, for the progress shown. `size(record)`: its sides; the report tells the
    largest.

    Raises InputError when `out` holds another dataset, cannot be written or is full, or when nothing was left to write.
    """
    out = local(out).expanduser().absolute()
    _claim(out, {"dataset": name, **made_from, "shards": len(parts)})
    shards = [f"{name}-train.array_record-{i:05d}-of-{len(parts):05d}" for i in range(len(parts))]
    if not (out / "report.json").exists():
        there = set(os.listdir(out))
        todo = [(shard, part) for shard, part in zip(shards, parts, strict=True) if shard not in there]
        work = functools.partial(_write_shard, out, features, examples, share, size)
        with _progress(out, dict(zip(shards, map(len, parts), strict=True)), name):
            _run(todo, work, runner, beam)
        _finish(out, name, features, shards)
    report = json.loads((out / "report.json").read_text())
    skipped = report["skipped"]
    for bad in skipped[:10]:
        print(f"skipped {bad['file']}: {bad['reason']}", file=sys.stderr)
    if skipped:
        print(f"{len(skipped)} skipped in all, listed in {out / 'report.json'}", file=sys.stderr)
    if not report["records"]:
        first = skipped[0] if skipped else {"file": "-", "reason": "nothing to read"}
        raise InputError(
            f"nothing could be written to {out}: all {len(skipped)} sources were skipped, "
            f"the first one, {first['file']}, because: {first['reason']}"
        )
    return report


def _claim(out: Path, made_from: dict):
    """Marks the folder as this dataset's, or raises InputError if it is already another's."""
    marker = out / "build.json"
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if not marker.exists():
            if list(out.glob("*array_record*")) or (out / "dataset_info.json").exists():
                raise InputError(f"{out} already holds a dataset that this command did not begin: choose another --out")
            put(marker, json.dumps(made_from, indent=1))
    held = json.loads(marker.read_text())
    if held != made_from:
        key = next(k for k in [*made_from, *held] if held.get(k) != made_from.get(k))
        raise InputError(
            f"{out} holds a dataset begun with {key}={held.get(key)!r}, not {made_from.get(key)!r}: "
            "choose another --out, or delete that folder"
        )


def _run(todo: list, work: Callable, runner: str, beam: Sequence[str]):
    if not todo:
        return
    notebook = "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None
    if notebook and runner == "DirectRunner" and not beam:
        # There Beam loads extras of its own, which do not import beside pandas 3, for what one process does as well.
        for element in todo:
            work(element)
        return
    logging.disable(logging.WARNING)  # Beam warns whoever imports it that Google's clients are not there
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        if runner != "DirectRunner" or beam:
            raise InputError(f"--runner {runner} needs Apache Beam: pip install apache-beam") from None
        for element in todo:
            work(element)
        return
    finally:
        logging.disable(logging.NOTSET)
    # Beam's own "DirectRunner" first looks for a Go program on the network; this is the one it then falls back to.
    local = runner == "DirectRunner"
    if local:
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # a failure is raised below, once
    options = PipelineOptions([f"--{option.lstrip('-')}" for option in beam])
    try:
        pipeline = apache_beam.Pipeline(runner=LOCAL if local else runner, options=options)
    except (ValueError, ImportError, AttributeError) as error:
        raise InputError(f"Apache Beam cannot start --runner {runner}: {error}") from error
    try:
        with pipeline:
            pipeline | apache_beam.Create(todo) | apache_beam.Reshuffle() | "shard" >> apache_beam.Map(work)
    except Exception as error:  # Beam wraps what a worker raised, in-process and remotely in different ways
        start = "" if isinstance(error, InputError) else "InputError: "
        said = re.search(start + r"(.*?) \[while running", str(error))
        if said is None:
            raise
        raise InputError(said[1]) from error


def _write_shard(out: Path, features, examples: Callable, share: Callable | None, size: Callable | None, element):
    from array_record.python.array_record_module import ArrayRecordWriter

    shard, part = element
    if (out / shard).exists():  # a runner may hand out an element twice
        return
    skipped: list[dict] = []
    largest: list[int] = []
    done = 0.0
    temporary = out / f".{shard}.{os.getpid()}-{threading.get_ident()}.tmp"
    try:
        with writing(out):
            writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")  # mp4 and noise: nothing to squeeze
        with contextlib.closing(iter(examples(part, skipped))) as records:
            for record in records:
                with writing(out):
                    writer.write(_serialize(features, record))
                done += 1 if share is None else share(record)
                largest = max(largest, [int(n) for n in size(record)] if size else [], key=_volume)
                _under_way[shard] = min(len(part), round(done + len(skipped), 2))
        with writing(out):
            writer.close()
            (out / "said").mkdir(exist_ok=True)
            put(_said_of(out, shard), json.dumps({"skipped": skipped, "largest": largest}))
            os.replace(temporary, out / shard)
    finally:
        _under_way.pop(shard, None)
        temporary.unlink(missing_ok=True)


def skip(file: str, error: Exception) -> dict:
    """The entry of `skipped` for a file that failed: one that breaks its decoder must not stop ten thousand others."""
    return {"file": file, "reason": str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"}


def _serialize(features, record: dict) -> bytes:
    """The record as a tf.train.Example whose bytes are the same in every process (protobuf maps by default are not)."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(features.serialize_example(record)).SerializeToString(deterministic=True)


def _said_of(out: Path, shard: str) -> Path:
    return out / "said" / f"{shard.split('record-')[1]}.json"


def _volume(sides: Sequence[int]) -> int:
    return math.prod(sides) if sides else 0


def _finish(out: Path, name: str, features, shards: list[str]):
    """Gathers what the shards say into TFDS metadata and report.json."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordReader

    said = [json.loads(_said_of(out, shard).read_text()) for shard in shards]
    largest = max((each["largest"] for each in said), key=_volume, default=[])
    lengths = []
    for shard in shards:
        reader = ArrayRecordReader(str(out / shard))
        lengths.append(reader.num_records())
        reader.close()
    size = sum((out / shard).stat().st_size for shard in shards)
    files = tfds.core.ShardedFileTemplate(
        dataset_name=name, data_dir=out, split="train", filetype_suffix="array_record"
    )
    with writing(out):
        if sum(lengths):
            tfds.folder_dataset.write_metadata(
                data_dir=out,
                features=features,
                split_infos=[
                    tfds.core.SplitInfo(name="train", shard_lengths=lengths, num_bytes=size, filename_template=files)
                ],
                filename_template=files,
                check_data=False,
                description=(out / "build.json").read_text(),
            )
        report = {"out": str(out), "dataset": name, "records": sum(lengths), "shards": len(shards), "bytes": size}
        report |= {"largest": largest} if largest else {}
        report["skipped"] = [bad for each in said for bad in each["skipped"]]
        put(out / "report.json", json.dumps(report, indent=1))
    for leftover in [*out.glob(".*.tmp"), *(out / "said").glob("*")]:
        leftover.unlink(missing_ok=True)
    (out / "said").rmdir()


def put(path: Path, text: str):
    """Writes a text file, all or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turns a full disk or a forbidden folder into the user's one sentence; array_record has RuntimeError for both."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).split(";")[0]
        raise InputError(
            f"cannot write to {out} ({reason}): make room or choose another --out; finished shards are kept, "
            "and the same command goes on from there"
        ) from error


_under_way: dict[str, float] = {}  # sources dealt with in the shards that this process is writing


@contextlib.contextmanager
def _progress(out: Path, sizes: dict[str, int], name: str) -> Iterator[None]:
    """A bar over the finished shards on disk, whoever writes them, and over those that this process is writing."""
    from tqdm import tqdm

    def done() -> float:
        there = set(os.listdir(out))
        return sum(size if shard in there else _under_way.get(shard, 0) for shard, size in sizes.items())

    def watch():
        while not stop.wait(0.5):
            show()

    def show():
        now = round(done(), 2)
        bar.n = int(now) if now == int(now) else now
        bar.update(0)

    pause = 0.1 if sys.stderr.isatty() else LOG
    # miniters: else tqdm waits for as large a leap as it saw before, and falls silent in the midst of a long film
    bar = tqdm(total=sum(sizes.values()), initial=done(), unit=" clips", desc=name, mininterval=pause, miniters=0)
    stop, watcher = threading.Event(), threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        show()
        bar.close()


class Records(Sequence):
    """The records of a dataset folder by index, as `decode` makes them out of {feature: list of its values}.

    `largest`: of each folder the sides of its largest record, or None where nobody looked.
    Raises InputError when the folder holds no such dataset, or an unfinished one.
    """

    def __init__(self, path, name: str, decode: Callable[[dict], dict]):
        if "://" in os.fspath(path):
            raise InputError(f"datasets are read out of folders: mount the bucket of {path} and name that path")
        path = Path(path).expanduser()
        if not (path / "dataset_info.json").exists():
            if (path / "build.json").exists():
                raise InputError(f"{path} is not finished: run the command that began it once more")
            raise InputError(f"{path} is not a dataset folder: make one with `sora-jax data build` or `data latents`")
        split = json.loads((path / "dataset_info.json").read_text())["splits"][0]
        lengths = [int(n) for n in split["shardLengths"]]
        shards = [path / f"{name}-train.array_record-{i:05d}-of-{len(lengths):05d}" for i in range(len(lengths))]
        missing = [shard.name for shard in shards if not shard.exists()]
        if missing:
            what = json.loads((path / "dataset_info.json").read_text())["name"]
            if what != name:
                raise InputError(f"{path} is a dataset of {what}, where one of {name} is needed")
            raise InputError(f"{path} has lost {missing[0]}: build it again")
        report = json.loads((path / "report.json").read_text()) if (path / "report.json").exists() else {}
        self.path, self._decode, self.largest = path.absolute(), decode, {str(path): report.get("largest")}
        self._files = [f"{shard}[0:{n}]" for shard, n in zip(shards, lengths, strict=True) if n]
        self._length = sum(lengths)

    @functools.cached_property
    def _source(self):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        return ArrayRecordDataSource(self._files)

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "_source"}  # file handles do not pickle

    def __len__(self) -> int:
        return self._length

    def __add__(self, more: "Records") -> "Records":
        """These records, and then those of another folder of the same kind."""
        both = copy.copy(self)
        both.__dict__.pop("_source", None)
        both._files, both._length = self._files + more._files, self._length + more._length
        both.largest = self.largest | more.largest
        return both

    def __getitem__(self, index: int) -> dict:
        from tensorflow_datasets.proto import tf_example_pb2

        if not -self._length <= index < self._length:
            raise IndexError(index)
        values = tf_example_pb2.Example.FromString(self._source[index % self._length]).features.feature
        return self._decode({key: getattr(item, item.WhichOneof("kind")).value for key, item in values.items()})
