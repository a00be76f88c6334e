"""Begins a plugin: one of the examples under another name."""
