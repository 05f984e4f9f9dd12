"""An exported network at work: the file is checked, ONNX Runtime computes. Knows no JAX."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xec_jax.errors import CheckpointError, ConfigError, ShapeError

log = logging.getLogger(__name__)

METADATA_KEY = "xec_jax"
"""Where an ONNX file says what it is."""
FORMAT = 1
FACTS = ("task", "part", "raw", "inputs", "outputs", "normalization", "branches")
"""What every model has to say."""

GPU, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
AGAIN = "copy or export the model again"


class OnnxModel:
    """A network in a file that `xec_jax.export` wrote.

    What is compared with `FILE.sha256` are the very bytes that are run.

    Args:
        path: The file.
        threads: Threads of a CPU; as many as it has cores if not given.

    Attributes:
        path: The file.
        sha256: Of its content, hex.
        facts: What the file says of itself, as in its manifest.
        inputs: Shape of one event by name.
        outputs: The same of what comes out.
        provider: What computes, as ONNX Runtime calls it.
        version: Of ONNX Runtime.

    Raises:
        ConfigError: ONNX Runtime is not installed.
        CheckpointError: No such file, damaged, of another origin, or of a newer version.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        self.path = Path(path)
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError(
                "onnxruntime is not installed", remedy="pip install -e '.[export]'"
            ) from error
        content = self._read()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4  # what goes wrong is raised as well
        providers: list[Any] = [CPU]
        if GPU in onnxruntime.get_available_providers():
            # By default, matrix products would keep ten bits of a float32.
            providers.insert(0, (GPU, {"use_tf32": "0"}))
        try:
            session = onnxruntime.InferenceSession(content, options, providers=providers)
        except Exception as error:  # of a dozen classes of its own, none of them public
            raise CheckpointError(
                f"{self.path} cannot be loaded: {_first_line(error)}",
                expected="a complete ONNX file",
                remedy=AGAIN,
            ) from error
        self._session = session
        self.provider, self.version = session.get_providers()[0], onnxruntime.__version__
        self.facts = self._read_facts(session.get_modelmeta().custom_metadata_map)
        self.inputs, self.outputs = (
            {port["name"]: tuple(port["shape"]) for port in self.facts[side]}
            for side in ("inputs", "outputs")
        )
        self._compare_with_graph()

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Computes the outputs of some events.

        Args:
            arrays: For every input numbers (b, ...), b > 0; what is no float32 is cast.

        Returns:
            float32 (b, ...) for every output.

        Raises:
            ShapeError: Inputs that are missing, too many, or of another shape.
            CheckpointError: The model fails.
        """
        if arrays.keys() != self.inputs.keys():
            raise ShapeError(
                f"{self.path} was given {', '.join(arrays) or 'nothing'}",
                expected=", ".join(self.inputs),
            )
        given = {n: np.ascontiguousarray(arrays[n], np.float32) for n in self.inputs}
        n_events = {len(values) if values.ndim else 0 for values in given.values()}
        for name, shape in self.inputs.items():
            if given[name].shape[1:] != shape or len(n_events) != 1 or 0 in n_events:
                raise ShapeError(
                    f"{self.path}: input {name!r} has shape {given[name].shape}",
                    expected=f"({', '.join(['events', *map(str, shape)])}), as many events in "
                    "every input and at least one",
                )
        try:
            found = self._session.run(list(self.outputs), given)
        except Exception as error:
            raise CheckpointError(
                f"{self.path} fails on {n_events.pop()} events: {_first_line(error)}",
                remedy="smaller batches, if it is about memory",
            ) from error
        return dict(zip(self.outputs, found, strict=True))

    def _read(self) -> bytes:
        """Returns the content of the file once its checksum is known to be right."""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be read: {error.strerror or error}",
                expected="an ONNX file",
                remedy="python -m xec_jax.export --run RUN --output FILE.onnx makes one",
            ) from error
        self.sha256 = hashlib.sha256(content).hexdigest()
        checksum = self.path.with_name(f"{self.path.name}.sha256")
        try:
            written = checksum.read_text("ascii", "replace").split()
        except FileNotFoundError:
            log.warning("%s is missing: nobody knows if %s is complete", checksum, self.path.name)
            return content
        except OSError as error:
            raise CheckpointError(f"{checksum} cannot be read: {error}") from error
        if not written or written[0].lower() != self.sha256:
            raise CheckpointError(
                f"{self.path} is damaged or belongs to another checksum: sha256 {self.sha256}",
                expected=f"{written[0][:64] if written else 'a sha256'}, from {checksum}",
                remedy=AGAIN,
            )
        return content

    def _read_facts(self, metadata: Mapping[str, str]) -> dict[str, Any]:
        """Reads and checks what the file says of itself."""
        expected = f"a file that `python -m xec_jax.export` wrote, format {FORMAT}"
        if METADATA_KEY not in metadata:
            found = f"{self.path} says nothing about normalization and branches"
            raise CheckpointError(found, expected=expected)
        try:
            facts = json.loads(metadata[METADATA_KEY])
            number = facts.get("format")
        except (ValueError, AttributeError) as error:
            found = f"{self.path}: its metadata are no JSON object"
            raise CheckpointError(found, expected=expected, remedy=AGAIN) from error
        if number != FORMAT:
            raise CheckpointError(
                f"{self.path} has format {number!r}",
                expected=expected,
                remedy="use the version of xec_jax that wrote it",
            )
        if absent := [name for name in FACTS if name not in facts]:
            found = f"{self.path}: its metadata lack {', '.join(absent)}"
            raise CheckpointError(found, expected=expected, remedy=AGAIN)
        return dict(facts)

    def _compare_with_graph(self) -> None:
        """Refuses a file whose metadata are about another graph."""
        graph = {port.name: tuple(port.shape[1:]) for port in self._session.get_inputs()}
        made = [port.name for port in self._session.get_outputs()]
        if graph != self.inputs or set(made) != set(self.outputs):
            raise CheckpointError(
                f"{self.path}: the graph has inputs {graph} and outputs {', '.join(made)}",
                expected=f"inputs {self.inputs} and outputs {', '.join(self.outputs)}, as in its "
                "metadata",
                remedy=AGAIN,
            )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
