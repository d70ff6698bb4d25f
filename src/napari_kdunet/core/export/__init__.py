"""From a model to files that other programs run: ONNX, one file of C, a package for bioimage.io."""
