"""Genie, Qualcomm's runtime for language models: the files that it needs beside binaries, and a dialog with it here."""
