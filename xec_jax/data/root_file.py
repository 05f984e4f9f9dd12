"""One ROOT file: its trees, its branches, and ranges of entries as dense numpy arrays.

Reads TTrees and RNTuples alike. The only module that reads with uproot, which reports bad files
with half a dozen unrelated exceptions; whatever goes wrong leaves here as a `DataError` that
names file, tree and branch.
"""

from pathlib import Path
from typing import Any

import numpy as np
import uproot
from uproot.interpretation.jagged import AsJagged
from uproot.interpretation.numerical import AsDtype, Numerical

from xec_jax.data.checks import COPY_AGAIN, check_header, data_errors, describe, suggest
from xec_jax.errors import DataError

TREE_CLASSES = ("TTree", "TNtuple", "TNtupleD", "ROOT::RNTuple")


class NotNumbersError(Exception):
    """A branch that does not hold the same number of values in every entry."""


class Column:
    """A branch with the same number of values in every entry.

    Attributes:
        shape: Shape of one entry as the file declares it.
        dtype: Type of the values in the file, in native byte order.
        offsets: First entry of each basket or cluster, and the number of entries at the end.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    offsets: np.ndarray

    def read_into(self, out: np.ndarray, start: int, stop: int) -> None:
        """Fills `out` with the entries `start` to `stop`, cast to the type of `out`."""
        raise NotImplementedError


class TreeColumn(Column):
    """A branch of a TTree."""

    def __init__(self, branch: Any) -> None:
        interpretation = branch.interpretation
        if isinstance(interpretation, AsJagged):
            raise NotNumbersError(f"has a variable length ({branch.typename})")
        if not isinstance(interpretation, Numerical):
            raise NotNumbersError(f"does not hold plain numbers ({branch.typename})")
        self._branch = branch
        dtype = interpretation.numpy_dtype
        self.dtype, self.shape = dtype.base, dtype.shape
        self.offsets = np.asarray(branch.entry_offsets, dtype=np.int64)

    def read_into(self, out: np.ndarray, start: int, stop: int) -> None:
        """See `Column`."""
        target = out.reshape(len(out), *self.shape)
        interpretation = self._branch.interpretation
        in_place = type(interpretation) is AsDtype
        if in_place:  # swaps bytes and casts on the way into `out`, without a copy in between
            interpretation = interpretation.inplace(target)
        values = self._branch.array(interpretation, start, stop, library="np", array_cache=None)
        if not in_place:
            target[...] = values


class NtupleColumn(Column):
    """A field of an RNTuple.

    Reads whole clusters: the library's own range reader would decompress the cluster after the
    range as well.
    """

    def __init__(self, ntuple: Any, name: str) -> None:
        form = ntuple.to_akform(filter_name=[name])[0].content(name)
        shape = []
        while hasattr(form, "size"):
            shape.append(form.size)
            form = form.content
        if not hasattr(form, "primitive") or form.form_key is None:
            raise NotNumbersError(f"has a variable length or holds no numbers ({form.type})")
        self._ntuple = ntuple
        self._column = int(form.form_key.split("-")[1])
        self.dtype, self.shape = np.dtype(form.primitive), tuple(shape)
        clusters = ntuple.cluster_summaries
        starts = [cluster.num_first_entry for cluster in clusters]
        self.offsets = np.asarray([*starts, ntuple.num_entries], dtype=np.int64)

    def read_into(self, out: np.ndarray, start: int, stop: int) -> None:
        """See `Column`."""
        first = int(np.searchsorted(self.offsets, start, side="right")) - 1
        last = int(np.searchsorted(self.offsets, stop, side="left"))
        values = self._ntuple.read_cluster_range(self._column, first, last, array_cache=None)
        values = values.reshape(self.offsets[last] - self.offsets[first], *self.shape)
        skip = start - self.offsets[first]
        out.reshape(len(out), *self.shape)[...] = values[skip : skip + len(out)]


class RootFile:
    """An open ROOT file with one tree in it, safe to read from several threads.

    Args:
        path: Local file. Colons, blanks and brackets in its name mean nothing special.
        tree: Name of the TTree or RNTuple, with its folders in the file if it has any.

    Attributes:
        entries: Number of events.
        uuid: Identifier that ROOT gave the file when it was written.

    Raises:
        DataError: The file is empty, truncated, no ROOT file, or has no such tree.
    """

    def __init__(self, path: Path, tree: str) -> None:
        self.path, self.tree = path, tree
        check_header(path)
        with data_errors(f"{path} cannot be opened"):
            # Plain file handles: a memory map kills the process when the disk fails, and the
            # default opens URLs. A dict keeps uproot from looking for "file:tree" in the name.
            self._directory = uproot.open(
                {str(path): None},
                handler=uproot.source.file.MultithreadedFileSource,
                num_workers=1,
                object_cache=None,
                array_cache=None,
            )
        try:
            with data_errors(f"{path}: tree {tree!r} cannot be read"):
                self._tree = self._find_tree()
                self.entries = int(self._tree.num_entries)
                self.uuid = str(self._directory.file.uuid)
        except DataError:
            self.close()
            raise
        self._columns: dict[str, Column] = {}

    def _find_tree(self) -> Any:
        classes = self._directory.classnames(cycle=False)
        trees = [name for name, kind in classes.items() if kind in TREE_CLASSES]
        if self.tree in trees:
            return self._directory[self.tree]
        remedy = f"name the tree that holds the events{suggest(self.tree, trees)}"
        if not trees:
            remedy = f"was the job that wrote it killed? {COPY_AGAIN}"
        raise DataError(
            f"{self.path} has no tree {self.tree!r} (its trees: {', '.join(trees) or 'none'})",
            expected=f"a TTree or RNTuple named {self.tree!r}",
            remedy=remedy,
        )

    def names(self) -> list[str]:
        """Returns the names of all branches."""
        return list(self._tree.keys())

    def has(self, name: str) -> bool:
        """Tells whether there is a branch of this name."""
        return name in self._tree.keys()  # noqa: SIM118 (iterating a tree gives branches)

    def column(self, name: str, shape: tuple[int, ...] | None = None) -> Column:
        """Returns a branch of plain numbers, checked.

        Args:
            name: Name of the branch.
            shape: Expected shape of an entry; `(1,)` in the file passes for `()`. None takes
                any fixed shape.

        Raises:
            DataError: There is no such branch, or it holds something else.
        """
        if name not in self._columns:
            self._columns[name] = self._open_column(name, shape)
        column = self._columns[name]
        if shape is not None and column.shape not in (shape, shape or (1,)):
            raise DataError(
                f"{self._where(name)} holds {describe(column.shape)} per event",
                expected=f"{describe(shape)} per event",
                remedy=f"choose another branch or another file{suggest(name, self.names())}",
            )
        return column

    def _open_column(self, name: str, shape: tuple[int, ...] | None) -> Column:
        if not self.has(name):
            raise DataError(
                f"{self.path}: tree {self.tree!r} has no branch {name!r} "
                f"(it has: {', '.join(self.names())})",
                expected=f"a branch {name!r} with {describe(shape)} per event",
                remedy=f"name a branch that the file has{suggest(name, self.names())}",
            )
        with data_errors(self._where(name) + " cannot be read"):
            try:
                if hasattr(self._tree, "cluster_summaries"):
                    column: Column = NtupleColumn(self._tree, name)
                else:
                    column = TreeColumn(self._tree[name])
            except NotNumbersError as error:
                raise DataError(
                    f"{self._where(name)} {error}",
                    expected=f"{describe(shape)}, the same number in every event",
                    remedy="write the branch as a fixed-size array, e.g. name[4760]/F",
                ) from error
        if column.dtype.kind not in "biuf":
            raise DataError(
                f"{self._where(name)} has the type {column.dtype}",
                expected="whole or real numbers",
                remedy=f"choose another branch{suggest(name, self.names())}",
            )
        return column

    def read_into(self, name: str, out: np.ndarray, start: int, stop: int) -> None:
        """Fills an array with a range of entries of a branch.

        Args:
            name: A branch that `column` accepts.
            out: Array `[stop - start, ...]`; values are cast to its type.
            start: First entry in this file.
            stop: One past the last entry.

        Raises:
            DataError: The bytes on disk cannot be read or decompressed.
        """
        column = self.column(name)
        # Doubles beyond float32 become infinite; infinite numbers are the caller's business.
        with (
            data_errors(f"{self._where(name)}: entries {start} to {stop} cannot be read"),
            np.errstate(over="ignore", invalid="ignore"),
        ):
            column.read_into(out, start, stop)

    def close(self) -> None:
        """Closes the file."""
        self._directory.close()

    def __enter__(self) -> "RootFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _where(self, branch: str) -> str:
        return f"{self.path}: tree {self.tree!r}, branch {branch!r}"
