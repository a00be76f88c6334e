"""The folder that ONNX Runtime's QNN provider runs on a laptop or board with a Snapdragon, and a script in it."""
