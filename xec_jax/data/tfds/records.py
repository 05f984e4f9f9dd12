"""Records of many events at once: serialized `tf.train.Example`s that all have one layout.

Every feature is stored as bytes of a fixed length. All records then are equally long and differ in
the values alone, which lie at fixed places: one look at one record replaces parsing the others,
and a batch is a few strided copies.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

Columns = Mapping[str, tuple[tuple[int, ...], np.dtype]]


class Layout:
    """Where the values lie in a record.

    Args:
        record: Any serialized Example.
        columns: Shape and dtype of each feature, all of which the record must have.

    Attributes:
        columns: As given.
        size: Bytes of a record.

    Raises:
        ValueError: The record is none, or has other features.
    """

    def __init__(self, record: bytes, columns: Columns) -> None:
        self.columns, self.size = columns, len(record)
        spans = dict(_features(record))
        self._begins = {}
        fixed = np.ones(len(record), bool)
        for name, (shape, dtype) in columns.items():
            length = int(np.prod(shape)) * dtype.itemsize
            begin, end = spans.get(name, (0, -1))
            if end - begin != length:
                raise ValueError(f"feature {name!r} has {end - begin} bytes, not {length}")
            self._begins[name] = begin
            fixed[begin:end] = False
        self._record = np.frombuffer(record, np.uint8)
        self._fixed = np.flatnonzero(fixed)

    def join(self, values: Mapping[str, np.ndarray]) -> list[bytes]:
        """Returns the records of events, from arrays `[n, ...]` for all columns."""
        n = len(next(iter(values.values())))
        records = np.tile(self._record, (n, 1))
        for name in self.columns:
            self._view(records, name)[...] = values[name]
        return [record.tobytes() for record in records]

    def split(self, records: Sequence[bytes], names: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns views `[n, ...]` of some columns; they need not be aligned.

        Raises:
            ValueError: A record has another layout.
        """
        joined = np.frombuffer(b"".join(records), np.uint8)
        if len(joined) != len(records) * self.size:
            raise ValueError("records of other lengths")
        joined = joined.reshape(len(records), self.size)
        if (joined[:, self._fixed] != self._record[self._fixed]).any():
            raise ValueError("records with other features")
        return {name: self._view(joined, name) for name in names}

    def _view(self, records: np.ndarray, name: str) -> np.ndarray:
        shape, dtype = self.columns[name]
        length = int(np.prod(shape)) * dtype.itemsize
        begin = self._begins[name]
        values = records[:, begin : begin + length]
        return values.view(dtype.newbyteorder("<")).reshape(len(records), *shape)


def _features(record: bytes) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yields name, begin and end of the bytes of each feature that has one element of bytes.

    The messages are nested: Example, Features, an entry of a map, Feature, BytesList.
    """
    for features in _fields(record, 1, 0, len(record)):
        for entry in _fields(record, 1, *features):
            ((a, b),) = _fields(record, 1, *entry)
            for feature in _fields(record, 2, *entry):
                for values in _fields(record, 1, *feature):
                    spans = list(_fields(record, 1, *values))
                    if len(spans) == 1:
                        yield record[a:b].decode(), spans[0]


def _fields(record: bytes, number: int, at: int, end: int) -> Iterator[tuple[int, int]]:
    """Yields begin and end of all fields of a message with this number.

    Source: the wire format of protocol buffers, as far as these messages use it.
    """
    while at < end:
        tag, at = _varint(record, at)
        if tag & 7 != 2:
            raise ValueError("a field without a length: no Example of bytes")
        length, at = _varint(record, at)
        if tag >> 3 == number:
            yield at, at + length
        at += length
    if at != end:
        raise ValueError("a field that is longer than its message")


def _varint(record: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(record):
            raise ValueError("the record is too short")
        value |= (record[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if record[at - 1] < 128:
            return value, at
