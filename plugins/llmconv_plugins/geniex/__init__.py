"""GenieX, Qualcomm's successor of Genie: the files that it imports beside binaries."""
