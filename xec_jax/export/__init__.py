"""From a trained run to a file that needs no Python: ONNX, SavedModel, and the proof."""
