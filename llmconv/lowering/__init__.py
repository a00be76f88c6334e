"""From fx parts to ONNX files."""
