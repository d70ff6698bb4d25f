"""From a model to files that other programs run: ONNX, one file of C."""
