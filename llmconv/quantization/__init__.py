"""Encodings and the calibration that finds them."""
