"""One ROOT file: its trees, its branches, and ranges of entries as dense numpy arrays.

Reads TTrees and RNTuples alike. The only module that reads with uproot, which reports bad files
with half a dozen unrelated exceptions; whatever goes wrong leaves here as a `DataError` that
names file, tree and branch.
"""

import contextlib
import struct
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import uproot
import xxhash
from uproot.interpretation.jagged import AsJagged
from uproot.interpretation.numerical import AsDtype, Numerical
from uproot.models.TBasket import Model_TBasket

from xec_jax.data.root.header import COPY_AGAIN, check_header, data_errors, describe, suggest
from xec_jax.errors import DataError

TREE_CLASSES = ("TTree", "TNtuple", "TNtupleD", "ROOT::RNTuple")
NAMES_SHOWN = 20
BASKET = struct.Struct(">ihi")  # the head of its key: bytes on disk, version, bytes of content


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
    """A branch of a TTree.

    The file says three times how long a basket is: in the tree, in the basket's key and in the
    head of the compressed block. They are compared before memory is taken.
    """

    def __init__(self, branch: Any, entries: int, file_size: int) -> None:
        interpretation = branch.interpretation
        if isinstance(interpretation, AsJagged):
            raise NotNumbersError(f"has a variable length ({branch.typename})")
        if not isinstance(interpretation, Numerical):
            raise NotNumbersError(f"does not hold plain numbers ({branch.typename})")
        self._branch = branch
        dtype = interpretation.numpy_dtype
        self.dtype, self.shape = dtype.base, dtype.shape
        self.offsets = np.asarray(branch.entry_offsets, dtype=np.int64)
        self._free = branch.num_baskets - len(branch.embedded_baskets)
        seek, size = (
            np.asarray(branch.member(name)[: self._free], np.int64)
            for name in ("fBasketSeek", "fBasketBytes")
        )
        if (seek < 0).any() or (size <= 0).any() or (seek + size > file_size).any():
            raise ValueError("baskets outside of the file")
        if self.offsets[0] != 0 or (np.diff(self.offsets) < 0).any():
            raise ValueError("baskets in no order")
        if self.offsets[-1] != entries:
            raise ValueError(f"{self.offsets[-1]} entries, {entries} in the tree")

    def read_into(self, out: np.ndarray, start: int, stop: int) -> None:
        """See `Column`."""
        target = out.reshape(len(out), *self.shape)
        interpretation = self._branch.interpretation
        in_place = type(interpretation) is AsDtype
        first = int(np.searchsorted(self.offsets, start, side="right")) - 1
        for number in range(first, len(self.offsets) - 1):
            begin, end = self.offsets[number : number + 2].tolist()
            if begin >= stop:
                break
            basket = self._basket(number, end - begin)
            rows = target[max(begin, start) - start : min(end, stop) - start]
            if in_place and len(rows) == end - begin:
                # Swaps bytes and casts on the way into `out`, without a copy in between.
                basket.array(interpretation.inplace(rows), library="np")
            else:
                values = basket.array(interpretation, library="np")
                rows[...] = values[max(begin, start) - begin : min(end, stop) - begin]

    def _basket(self, number: int, entries: int) -> Any:
        """Returns a basket, decompressed, that holds as many entries as the tree says."""
        branch = self._branch
        if number >= self._free:
            basket = branch.basket(number)
        else:
            chunk, cursor = branch.basket_chunk_cursor(number)
            head = chunk.get(cursor.index, cursor.index + BASKET.size, cursor, {})
            compressed, _, raw = BASKET.unpack(head.tobytes())
            largest = entries * (self._size() + 4) + 8  # trees of old keep an offset per entry
            listed = branch.basket_compressed_bytes(number)
            if compressed != listed or not 0 <= raw <= largest:
                raise ValueError(
                    f"basket {number} says {compressed} bytes of {raw}, expected {listed} of "
                    f"{entries * self._size()}"
                )
            where = {"basket_num": number}
            basket = Model_TBasket.read(chunk, cursor, where, branch.file, branch.file, branch)
        if basket.num_entries != entries or basket.data.nbytes != entries * self._size():
            raise ValueError(f"basket {number} does not hold {entries} entries")
        return basket

    def _size(self) -> int:
        """Returns the bytes of one entry in the file."""
        interpretation = self._branch.interpretation
        n_values = 1 if type(interpretation) is AsDtype else int(np.prod(self.shape))
        return n_values * interpretation.itemsize


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
        record = ntuple.column_records[self._column]
        # A field that was added later has no pages before its first element.
        self._first = int(record.first_element_index)
        others = [one.idx for one in ntuple.column_records if one.field_id == record.field_id]
        self._forms = [self._column, *others]  # ways to store it, one of them per cluster
        clusters = ntuple.cluster_summaries
        starts = [cluster.num_first_entry for cluster in clusters]
        self.offsets = np.asarray([*starts, ntuple.num_entries], dtype=np.int64)

    def read_into(self, out: np.ndarray, start: int, stop: int) -> None:
        """See `Column`."""
        first = int(np.searchsorted(self.offsets, start, side="right")) - 1
        last = int(np.searchsorted(self.offsets, stop, side="left"))
        for cluster in range(first, last):
            self._verify(cluster)
        begin, end = self.offsets[[first, last]].tolist()
        per_entry = int(np.prod(self.shape))
        missing = min(max(0, self._first - begin * per_entry), (end - begin) * per_entry)
        values = self._ntuple.read_cluster_range(
            self._column, first, last, missing_element_padding=missing, array_cache=None
        )
        values = values.reshape(end - begin, *self.shape)
        skip = start - begin
        out.reshape(len(out), *self.shape)[...] = values[skip : skip + len(out)]

    def _verify(self, cluster: int) -> None:
        """Compares pages with their checksums, which ROOT writes and uproot does not look at.

        Costs a second read from the page cache, a few per cent of the decompression.
        """
        columns = self._ntuple.page_link_list[cluster]
        stored = [columns[form] for form in self._forms if form < len(columns)]
        used = next((column for column in stored if not column.suppressed), None)
        for page in used.pages if used else ():
            if page.has_checksum:
                begin, size = page.locator.offset, page.locator.num_bytes
                verify_xxh3(self._ntuple.file.source.chunk(begin, begin + size + 8).raw_data)


def verify_xxh3(data: Any) -> None:
    """Raises ValueError unless the last 8 bytes are the XXH3 of those before."""
    data = bytes(data)
    if xxhash.xxh3_64_intdigest(data[:-8]) != int.from_bytes(data[-8:], "little"):
        raise ValueError("the checksum does not fit: the bytes are damaged")


def verify_page_lists(ntuple: Any) -> None:
    """Compares the lists of clusters and pages with their checksums, before they are parsed."""
    for group in ntuple.footer.cluster_group_records:
        link = group.page_list_link
        chunk, _ = ntuple.read_locator(link.locator, link.env_uncomp_size)
        verify_xxh3(chunk.raw_data)


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
                self._names = dict.fromkeys(self._tree.keys())  # slow for many branches
                self._is_ntuple = hasattr(type(self._tree), "cluster_summaries")
                if self._is_ntuple:
                    verify_page_lists(self._tree)
                self.entries = int(self._tree.num_entries)
                self.uuid = str(self._directory.file.uuid)
        except DataError:
            self.close()
            raise
        self._columns: dict[str, Column] = {}
        self._lock = threading.Lock()

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
        return list(self._names)

    def has(self, name: str) -> bool:
        """Tells whether there is a branch of this name; see `column`."""
        return self._full_name(name) is not None

    def _full_name(self, name: str) -> str | None:
        """Returns the name with the branches that this one is a part of; None if there is none."""
        if name in self._names:
            return name
        found = [one for one in self._names if one.endswith(f"/{name}")]
        if len(found) > 1:
            raise DataError(
                f"{self.path}: tree {self.tree!r} has {len(found)} branches {name!r}",
                expected="one of " + ", ".join(found[:NAMES_SHOWN]),
            )
        return found[0] if found else None

    def column(self, name: str, shape: tuple[int, ...] | None = None) -> Column:
        """Returns a branch of plain numbers, checked.

        Args:
            name: Name of the branch; of a sub-branch, the last part is enough if it is unique.
            shape: Expected shape of an entry; `(1,)` in the file passes for `()`. None takes
                any fixed shape.

        Raises:
            DataError: There is no such branch, or it holds something else.
        """
        with self._lock:  # the library shares lists between threads before they are complete
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
        full = self._full_name(name)
        if full is None:
            names = [*self.names()[:NAMES_SHOWN], "..."][: len(self._names)]
            raise DataError(
                f"{self.path}: tree {self.tree!r} has no branch {name!r} "
                f"(it has: {', '.join(names)})",
                expected=f"a branch {name!r} with {describe(shape)} per event",
                remedy=f"name a branch that the file has{suggest(name, self.names())}",
            )
        with data_errors(self._where(name) + " cannot be read"):
            try:
                if self._is_ntuple:
                    column: Column = NtupleColumn(self._tree, full)
                else:
                    size = self.path.stat().st_size
                    column = TreeColumn(self._tree[full], self.entries, size)
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
            data_errors(f"{self._where(name)}: entries {start} to {stop - 1} cannot be read"),
            np.errstate(over="ignore", invalid="ignore"),
        ):
            column.read_into(out, start, stop)

    def salvage(
        self, name: str, out: np.ndarray, start: int, stop: int
    ) -> list[tuple[int, int, DataError]]:
        """Fills an array like `read_into`, but basket by basket, zeros where that fails.

        Returns:
            First and one past the last entry in this file of what cannot be read, and why. It
            depends on the file alone, not on how its entries are grouped into calls.
        """
        baskets: list[int] = []
        with contextlib.suppress(DataError):  # it cannot even be opened: all is lost
            baskets = np.unique(self.column(name).offsets).tolist()
        cuts = [start, *(entry for entry in baskets if start < entry < stop), stop]
        lost = []
        for begin, end in pairwise(cuts):
            rows = out[begin - start : end - start]
            try:
                self.read_into(name, rows, begin, end)
            except DataError as error:
                rows[...] = 0
                lost.append((begin, end, error))
        return lost

    def close(self) -> None:
        """Closes the file."""
        self._directory.close()

    def __enter__(self) -> "RootFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _where(self, branch: str) -> str:
        return f"{self.path}: tree {self.tree!r}, branch {branch!r}"
