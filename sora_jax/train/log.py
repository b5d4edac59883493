"""What a run says: metrics.jsonl, TensorBoard, a progress bar, sentences on stderr, one when it cannot write."""

import contextlib
import json
import math
import os
import socket
import sys
import time
from pathlib import Path

import jax
import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

from sora_jax.errors import InputError


class Log:
    """Metrics of a run: kept on the device between lines, then into metrics.jsonl, TensorBoard and the progress bar."""

    def __init__(self, workdir: Path, step: int, steps: int, started: float):
        """started: when the process began to work, by `time.perf_counter`."""
        self.workdir, self.path = workdir, workdir / "metrics.jsonl"
        self.start, self.steps = step, steps
        self.started, self.stepping = started, 0.0
        self.waiting, self.units, self.flops = [], 0, 0.0

    def __enter__(self):
        first = jax.process_index() == 0  # the others are silent
        if first:
            with writing(self.workdir):
                forget(self.path, self.start)
                folder = self.workdir / "tensorboard"
                folder.mkdir(exist_ok=True)
                name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
                self.files = contextlib.ExitStack()  # a bucket's file is only to be had by `with`
                self.board = self.files.enter_context((folder / name).open("ab"))
                self.event(file_version="brain.Event:2")
        slow = not sys.stderr.isatty()  # a log file wants a line now and then, a terminal a living bar
        every = 15 if slow else 0.2
        self.bar = tqdm(total=self.steps, initial=self.start, unit="step", mininterval=every, disable=not first)
        self.since = time.perf_counter()
        return self

    def __exit__(self, *error):
        self.bar.close()
        if jax.process_index() == 0:
            self.files.close()

    def step(self, metrics: dict, units: int, flops: float, seconds: float) -> None:
        """Note a step's metrics without waiting for them, and the seconds it took, 0 when it had to be compiled."""
        self.stepping += seconds
        self.waiting.append(metrics)
        self.units, self.flops = self.units + units, self.flops + flops
        self.bar.update(1)

    def write(self, step: int, truncated: int | None = None) -> None:
        """One line for the steps since the last: means of what is finite, totals a second, the count of skips, and of
        the texts that this host has had to cut to the text budget, of data that has texts."""
        metrics = jax.device_get(self.waiting)
        seconds = time.perf_counter() - self.since
        values = {"loss": math.nan}  # first in the line
        for name in metrics[0]:
            finite = [float(m[name]) for m in metrics if np.isfinite(m[name])]
            values[name] = sum(finite) / len(finite) if finite else math.nan
        values["skipped"] = int(metrics[-1]["skipped"])
        if truncated is not None:
            values["truncated"] = truncated
        values |= {"tokens_per_second": self.units / seconds, "flops_per_second": self.flops / seconds}
        values["seconds_per_step"] = seconds / len(metrics)
        # the share of all time, from the start of this process, that went into steps: not compiling, saving, painting
        values["goodput"] = self.stepping / (time.perf_counter() - self.started)
        self.bar.set_postfix_str(
            f"loss {values['loss']:.4f}, {values['tokens_per_second']:.3g} tokens/s, "
            f"{values['flops_per_second'] / 1e9:.3g} GFLOP/s, {values['skipped']} skipped"
            + (f", {truncated} texts cut" if truncated else "")
        )
        self.numbers(step, values)
        self.waiting, self.units, self.flops = [], 0, 0.0
        self.since = time.perf_counter()

    def numbers(self, step: int, values: dict) -> None:
        """Append a line, with null for what is not finite, and the same to TensorBoard."""
        if jax.process_index():
            return
        finite = {k: v for k, v in values.items() if math.isfinite(v)}
        with writing(self.workdir):
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **dict.fromkeys(values), **finite}) + "\n")
            scalars = [Summary.Value(tag=name, simple_value=value) for name, value in finite.items()]
            self.event(step=step, summary=Summary(value=scalars))

    def event(self, **fields) -> None:
        """Append to TensorBoard's file (as tf.summary does, whose import alone takes 20 seconds)."""
        RecordWriter(self.board).write(Event(wall_time=time.time(), **fields).SerializeToString())
        self.board.flush()


def forget(path: Path, step: int) -> None:
    """Drop the lines of metrics that come after `step`, and one cut short: they will be written again."""
    if not path.exists():
        return

    def stays(line: str) -> bool:
        try:
            return json.loads(line)["step"] <= step
        except (ValueError, KeyError):
            return False

    replace(path, "".join(line for line in path.read_text().splitlines(True) if stays(line)))


def say(sentence: str) -> None:
    """A line on stderr that leaves the progress bar whole; stdout belongs to the summary."""
    if jax.process_index() == 0:
        tqdm.write(sentence, file=sys.stderr)


class writing:
    """Turns the operating system's refusal to write into one sentence about the workdir."""

    def __init__(self, workdir: Path):
        self.workdir = workdir

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, OSError):
            raise InputError(
                f"cannot write in {self.workdir} ({error.strerror or error}): make room or give another --workdir; "
                "what is there stays as it is"
            ) from error


def replace(path: Path, text: str) -> None:
    """Write a file so that it is whole or as before, whenever the process dies."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
