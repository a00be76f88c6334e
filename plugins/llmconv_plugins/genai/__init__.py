"""ONNX Runtime GenAI's `decoder-pipeline` form of a bundle, and its generator in a child process."""
