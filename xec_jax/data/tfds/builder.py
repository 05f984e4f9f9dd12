"""Writes events as a TFDS dataset: its features, its files of records, and what it says of itself.

The only file that imports tensorflow_datasets, which needs no TensorFlow for this.
"""

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from xec_jax.data.root.source import RootSource
from xec_jax.data.root.writer import sync_folder
from xec_jax.data.tfds.folder import FORMAT, SENSOR_KEYS, SPLIT, TRUTH, shard_name
from xec_jax.data.tfds.packing import Packing, photons, times
from xec_jax.data.tfds.records import Layout
from xec_jax.data.tfds.source import open_records
from xec_jax.errors import DataError, DiskError

BATCH = 256  # events that are converted at a time


@dataclass(frozen=True)
class Recipe:
    """What a cache is made of and how; the same recipe over the same files is the same cache.

    Attributes:
        input: Files, folders or globs with ROOT files.
        tree: Name of the tree.
        npho_branch: Branch behind `npho`.
        time_branch: Branch behind `time`; None for none.
        branches: Further branches.
        encoding: `uint16` (see `packing`) or `float32`, without any loss.
        time_range: In ns; times outside do not fit into `uint16`.
        clip: Whether numbers out of range become its end; else they are an error.
        compression: `none`, or `zstd`: 60 % of the bytes at half the speed.
        on_bad_file: As for `RootSource`.
        derive_relative: As for `RootSource`.
        n_sensors: Number of photosensors.
    """

    input: tuple[str, ...]
    tree: str = "tree"
    npho_branch: str = "npho"
    time_branch: str | None = "relative_time"
    branches: tuple[str, ...] = ()
    encoding: str = "uint16"
    time_range: tuple[float, float] = (-100.0, 225.0)
    clip: bool = False
    compression: str = "none"
    on_bad_file: str = "error"
    derive_relative: bool = False
    n_sensors: int = 4760

    def open(self) -> RootSource:
        """Opens the ROOT files."""
        return RootSource(
            self.input,
            tree=self.tree,
            npho_branch=self.npho_branch,
            time_branch=self.time_branch,
            extra=self.branches,
            n_sensors=self.n_sensors,
            shuffle=False,
            threads=1,
            on_bad_file=self.on_bad_file,
            derive_relative=self.derive_relative,
        )

    def packing(self) -> dict[str, Packing | None]:
        """Returns how the sensors' numbers are packed; None: they are not."""
        if self.encoding == "float32":
            packing: dict[str, Packing | None] = dict.fromkeys(SENSOR_KEYS)
        else:
            packing = {"npho": photons(self.npho_branch), "time": times(*self.time_range)}
        return packing if self.time_branch else {"npho": packing["npho"]}

    def digest(self, source: RootSource) -> str:
        """Returns a hash of the files' content and of all options."""
        options = asdict(self) | {"input": source.fingerprint, "format": FORMAT}
        return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()


class XecEvents(tfds.core.GeneratorBasedBuilder):
    """Events of ROOT files as a TFDS dataset, in the order of the files.

    `download_and_prepare` makes it in one process; `write_shard` and `finish` make the same
    records in many, file by file.

    Args:
        recipe: What to convert.
        source: The ROOT files, opened by `recipe.open`.
        **kwargs: As for every builder; `data_dir` is the folder of all datasets.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, recipe: Recipe, source: RootSource, **kwargs: Any) -> None:
        self._recipe, self._source = recipe, source
        self._packing = recipe.packing()
        self.columns = {
            key: (shape, np.dtype(np.uint16) if self._packing.get(key) else dtype)
            for key, (shape, dtype) in source.spec.items()
            if key != "weight"
        }
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            key: tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")
            for key, (shape, dtype) in self.columns.items()
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Photons and times of the photosensors of a liquid-xenon calorimeter.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(self._metadata()),
        )

    def _metadata(self) -> dict[str, Any]:
        recipe = self._recipe
        columns = {key: {"shape": s, "dtype": d.name} for key, (s, d) in self.columns.items()}
        return {
            "xec_jax_cache": FORMAT,
            "recipe": recipe.digest(self._source),
            "sources": self._source.fingerprint,
            "tree": recipe.tree,
            "npho_branch": recipe.npho_branch,
            "time_branch": recipe.time_branch,
            "columns": columns,
            "packing": {key: packing and asdict(packing) for key, packing in self._packing.items()},
            "bad_files": dict(self._source.manifest.left_out),
        }

    def _split_generators(self, dl_manager: Any) -> Mapping[str, Any]:
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        number = 0
        for arrays, *_ in self._stored(0, self._source.steps_per_epoch(size=BATCH, train=False)):
            for row in range(len(arrays["npho"])):
                yield number, {key: values[row] for key, values in arrays.items()}
                number += 1

    def _stored(
        self, begin: int, end: int
    ) -> Iterator[tuple[dict[str, np.ndarray], Counter[str], int]]:
        """Yields events as they are stored, numbers per key out of range, and events skipped."""
        for step in range(begin, end):
            batch = self._source.batch(step, size=BATCH, train=False)
            real = batch.pop("weight") > 0
            outside: Counter[str] = Counter()
            for key, packing in self._packing.items():
                if packing is not None:
                    codes, outside[key] = packing.encode(batch[key][real])
                    if outside[key] and not self._recipe.clip:
                        raise self._out_of_range(key, packing, batch[key][real], step)
                    batch[key] = codes
                else:
                    batch[key] = batch[key][real]
            others = {key: batch[key][real] for key in self.columns if key not in self._packing}
            skipped = min(BATCH, len(self._source) - step * BATCH) - int(real.sum())
            yield {**{key: batch[key] for key in self._packing}, **others}, outside, skipped

    def _out_of_range(self, key: str, packing: Packing, x: np.ndarray, step: int) -> DataError:
        low, high = packing.range
        valid = x[x < 9e9]
        marker = "-1e10 seems to be a marker, write 1e10; " if valid.min() < -9e9 else ""
        n = int(np.count_nonzero((valid < low) | (valid > high)))
        unit, factor = ("ns", 1e9) if key == "time" else ("photons", 1)
        option = "--time_range, " if key == "time" else ""
        return DataError(
            f"{self._recipe.input[0]}: {n} of {valid.size} values of {key!r} in the events "
            f"{step * BATCH} to {step * BATCH + len(x) - 1} are out of range: they reach from "
            f"{valid.min() * factor:g} to {valid.max() * factor:g} {unit}",
            expected=f"{low * factor:.6g} to {high * factor:.6g} {unit}",
            remedy=f"{marker}{option}--encoding float32, or --clip to give them the range's end",
        )

    def write_shard(self, path: Path, begin: int, end: int) -> None:
        """Writes one file of records, and beside it what `finish` needs; complete or absent.

        Args:
            path: The file.
            begin: First batch of `BATCH` events.
            end: One past the last.

        Raises:
            DataError: Events that cannot be read or packed.
            DiskError: The disk is full or cannot be written.
        """
        mine, notes = f".{os.getpid()}.part", notes_of(path)
        part, part_of_notes = path.with_name(path.name + mine), notes.with_name(notes.name + mine)
        small: dict[str, list[np.ndarray]] = {k: [] for k in self.columns if k not in SENSOR_KEYS}
        outside: Counter[str] = Counter()
        events = skipped = 0
        layout: Layout | None = None
        options = "uncompressed" if self._recipe.compression == "none" else "zstd:3"
        try:
            writer = ArrayRecordWriter(str(part), f"group_size:1,{options}")
            for arrays, more, lost in self._stored(begin, end):
                outside += more
                skipped += lost
                if not len(arrays["npho"]):
                    continue
                layout = layout or Layout(self._record(arrays), self.columns)
                for record in layout.join(arrays):
                    writer.write(record)
                events += len(arrays["npho"])
                for key, values in small.items():
                    values.append(arrays[key])
            writer.close()
            if events != (found := open_records(part).num_records()):
                raise RuntimeError(f"{found} of {events} events arrived")
            columns = {f"column_{key}": np.concatenate(v) for key, v in small.items() if v}
            counts = {f"outside_{key}": np.array(n) for key, n in outside.items()}
            counts |= {"events": np.array(events), "skipped": np.array(skipped)}
            with part_of_notes.open("wb") as file:
                np.savez(file, allow_pickle=False, **columns, **counts)
            part.rename(path)
            part_of_notes.rename(notes)  # from now on the file counts as finished
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)  # makes room
            raise _disk_error(path, error) from error

    def _record(self, arrays: Mapping[str, np.ndarray]) -> bytes:
        """Returns the record of the first event, written by TFDS."""
        example = self.info.features.encode_example({k: v[0] for k, v in arrays.items()})
        specs = self.info.features.get_serialized_info()
        serializer = tfds.core.example_serializer.ExampleSerializer(specs)
        # The order of the features must not depend on the process.
        return serializer.get_tf_example(example).SerializeToString(deterministic=True)

    def finish(self, folder: Path, total: int) -> dict[str, Any]:
        """Makes a data set of the files that `write_shard` wrote.

        Args:
            folder: Where they are.
            total: How many.

        Returns:
            Numbers of `events`, of events `skipped`, of `bytes`, and of values `outside` of the
            range per key; and the reasons why `bad_files` were left out.
        """
        paths = [folder / shard_name(number, total) for number in range(total)]
        lengths, skipped, outside = [], 0, Counter[str]()
        columns: dict[str, list[np.ndarray]] = {}
        for path in paths:
            with np.load(notes_of(path), allow_pickle=False) as notes:
                lengths.append(int(notes["events"]))
                skipped += int(notes["skipped"])
                for name in notes.files:
                    kind, _, key = name.partition("_")
                    if kind == "column":
                        columns.setdefault(key, []).append(notes[name])
                    elif kind == "outside":
                        outside[key] += int(notes[name])
        if not sum(lengths):
            raise DataError("no event could be read", expected="at least one event")
        size = sum(path.stat().st_size for path in paths)
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=self.name, split=SPLIT, filetype_suffix="array_record"
        )
        split = tfds.core.SplitInfo(
            name=SPLIT, shard_lengths=lengths, num_bytes=size, filename_template=template
        )
        try:
            with (folder / TRUTH).open("wb") as file:
                truth = {key: np.concatenate(parts) for key, parts in columns.items()}
                np.savez(file, allow_pickle=False, **truth)
            self.info.set_splits(tfds.core.splits.SplitDict([split]))
            self.info.metadata.update({"outside": dict(outside), "skipped": skipped})
            self.info.write_to_directory(folder)
            sync_folder(folder)
        except OSError as error:
            raise _disk_error(folder, error) from error
        return {
            **{"events": sum(lengths), "skipped": skipped, "bytes": size},
            **{"outside": dict(outside), "bad_files": self.info.metadata["bad_files"]},
        }


def notes_of(path: Path) -> Path:
    """Returns the file whose presence says that a file of records is finished."""
    return path.with_name(f"{path.name}.npz")


def bytes_per_event(columns: Mapping[str, tuple[Sequence[int], np.dtype]]) -> int:
    """Returns about how many bytes an event needs without compression."""
    names = sum(40 + len(name) for name in columns)
    return names + sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in columns.values())


def _disk_error(path: Path, error: Exception) -> DiskError:
    """What array_record says of a full disk is a RuntimeError."""
    return DiskError(
        f"cannot write {path} ({str(error).splitlines()[0]})",
        expected="a folder that may be written, on a disk with enough space",
        remedy="make room and start the same command again; finished files are kept",
    )
