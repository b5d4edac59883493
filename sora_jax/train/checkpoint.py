"""Checkpoints: everything a run is, as one atomic thing on disk.

A checkpoint `<dir>/<step>/` holds every entry of the training state (params, ema, opt, key, counters) and the data
cursor, one folder each, so that an export reads the weights and leaves the optimizer alone. Orbax writes it into a
temporary folder in the background and renames it once it is whole: a folder with a number for a name is complete,
whatever killed the process, and everything else is swept away at the next start. A bucket cannot rename: there the
folder is complete that holds COMMITTED, which is written last.
"""

import contextlib
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from sora_jax.errors import InputError

Tree = Any  # a pytree of arrays
COMMITTED = "commit_success.txt"  # orbax's `atomicity.CommitFileTemporaryPath`

# Orbax logs the stack of every thread that could not write; here one InputError says it.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
_unraisable = sys.unraisablehook


def _closed_loop_is_no_news(error) -> None:
    """At the first file it cannot write orbax closes its event loop; the files under way then report to nobody."""
    if str(error.exc_value) != "Event loop is closed":
        _unraisable(error)


sys.unraisablehook = _closed_loop_is_no_news


def located(folder: str | os.PathLike) -> epath.Path:
    """A folder on this machine, as an absolute path, or one in a bucket (gs://) as it stands."""
    return epath.Path(folder) if "://" in os.fspath(folder) else epath.Path(os.path.abspath(folder))


class Checkpoints:
    """The checkpoints of one run, of which the newest `keep` stay. Saving overlaps training, one save at a time."""

    def __init__(self, folder: str | Path, keep: int):
        if keep < 1:
            raise InputError(f"config.keep is {keep}: keep at least 1 checkpoint, or a killed run could not resume")
        self.folder = located(folder)
        self.saved = max(steps(self.folder), default=None)  # newest step known to be whole on disk
        self._saving = None  # (step, response) of the save under way
        with _spoken(self):
            self._checkpointer = ocp.training.Checkpointer(
                self.folder,
                context=_context(),
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                cleanup_tmp_directories=True,
            )

    def save(self, step: int, state: dict[str, Tree], cursor) -> None:
        """Begin to save; returns once the arrays are copied, so that the caller may donate their buffers.

        Waits for the save before this one, and raises what went wrong with it: InputError for a full or unwritable
        disk, with the older checkpoints untouched. `cursor` is anything JSON can hold.
        """
        self.wait()
        if step == self.saved:
            return
        cursor = {"next": json.loads(json.dumps(cursor))}  # a copy, for it is written while the data goes on
        with _spoken(self):
            # force: orbax's own policy would silently skip a save it thinks too soon
            response = self._checkpointer.save_checkpointables_async(step, {**state, "cursor": cursor}, force=True)
        self._saving = (step, response)

    def wait(self) -> None:
        """Return when the save under way is whole on disk. Raises InputError as `save` does."""
        if self._saving is None:
            return
        (step, response), self._saving = self._saving, None
        with _spoken(self):
            response.result()
        self.saved = step

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        """Let a save under way end; where another error is already on its way, that one is told."""
        try:
            self.wait()
            with _spoken(self):
                self._checkpointer.close()
        except InputError:
            if error is None:
                raise


def steps(folder: str | Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, oldest first; empty when there is no folder."""
    folder = located(folder)
    found = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return sorted(int(path.name) for path in found if "://" not in os.fspath(path) or (path / COMMITTED).exists())


def restore(folder: str | Path, abstract: dict[str, Tree] | None = None):
    """The newest complete checkpoint as (state, cursor); None when there is none.

    `abstract` names the entries to read, each a tree of ShapeDtypeStruct with its sharding: the arrays come back laid
    out that way, whatever mesh they were saved from. An entry given as None comes as NumPy arrays, and so does every
    entry when `abstract` is None: no device of the machine that saved them is needed.
    Raises InputError, naming an array, when what is there is not `abstract`.
    """
    found = steps(folder)
    if not found:
        return None
    path = located(folder) / str(found[-1])
    with _context(), _whole(path, found[:-1]):
        stored = ocp.checkpointables_metadata(path).metadata
        wanted = dict.fromkeys(name for name in stored if name != "cursor") if abstract is None else dict(abstract)
        for name, tree in wanted.items():
            if tree is None:
                wanted[name] = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), stored[name])
            else:
                _compare(path, name, stored[name], tree)
        state = ocp.load_checkpointables(path, {**wanted, "cursor": None})
    cursor = state.pop("cursor")["next"]
    return state, cursor


@contextlib.contextmanager
def _whole(path: Path, older: Sequence[int]) -> Iterator[None]:
    """Whatever orbax and tensorstore make of a checkpoint that is not whole, said in one sentence."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, OSError) as error:
        then = f"goes on from step {older[-1]}" if older else "begins anew"
        reason = str(error).strip().partition("\n")[0][:200]
        raise InputError(f"{path} is damaged ({reason}): remove it, and the run {then}") from error


def _compare(path: Path, name: str, stored: Tree, wanted: Tree) -> None:
    """Raise InputError for the first array that one has and the other has not, or has in another shape."""
    there, here = _shapes(stored), _shapes(wanted)
    for leaf in sorted(there.keys() | here.keys()):
        if there.get(leaf) != here.get(leaf):
            raise InputError(
                f"{path} holds another model, or is damaged: {name}/{leaf} is {there.get(leaf, 'absent')} there and "
                f"{here.get(leaf, 'absent')} in this config; use the config it was trained with, another --workdir, "
                "or remove it, and the run goes on from the checkpoint before"
            )


def _shapes(tree: Tree) -> dict[str, tuple]:
    """Shape by path; a path has no brackets, for orbax gives back a named tuple as a dict or a list."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def digest(state: dict[str, Tree], cursor) -> str:
    """SHA-256, as hex, of the state's arrays (path, dtype, shape, bytes; by path) and of the cursor as sorted JSON.

    Two runs with the same digest are at the same point, bit for bit, and go on the same way.
    """
    sha = hashlib.sha256()
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}
    for path in sorted(leaves):
        array = np.asarray(multihost_utils.process_allgather(leaves[path], tiled=True))
        sha.update(f"{path} {array.dtype.name} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    sha.update(json.dumps(cursor, sort_keys=True).encode())
    return sha.hexdigest()


def _context() -> ocp.Context:
    """Orbax as ever, but the cursor is JSON (a dict of numbers would else become a tree of arrays)."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="cursor")
    context = ocp.Context()
    context.checkpointables_options.registry = registry
    # On one host, sharing the writing of an array among its replicas gains nothing, and compiles a slice per shape.
    context.array_options.saving.use_replica_parallel = jax.process_count() > 1
    return context


class _spoken:
    """Turns what orbax raises when it cannot write into one sentence that says what is safe."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if not isinstance(error, (OSError, ValueError, RuntimeError)) or isinstance(error, InputError):
            return
        saved = self.checkpoints.saved
        safe = "there is no checkpoint yet" if saved is None else f"the checkpoint of step {saved} is intact"
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"could not save a checkpoint in {self.checkpoints.folder} ({reason}); {safe}: "
            "make room or give a --workdir that can be written, then run the same command again"
        ) from error
