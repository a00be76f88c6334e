"""Says what Genie's and QNN's messages on a phone mean, and what to do."""

from __future__ import annotations

import re

# Names and numbers: "Error codes" of the QNN API,
# docs.qualcomm.com/bundle/publicresource/80-63442-10/topics/api_error_codes.md
LIST = "https://docs.qualcomm.com/bundle/publicresource/80-63442-10/topics/api_error_codes.md"
MEANINGS = {
    # QNN_COMMON_ERROR_MEM_ALLOC; the NPU's own log names it where weights cannot be mapped:
    # github.com/qualcomm/qai-appbuilder/issues/97
    1002: "the NPU has no memory left for a part; split the model into more parts (passes.split_model.parts), give the "
    "graphs a shorter context, or end other apps that use the NPU",
    # QNN_COMMON_ERROR_INCOMPATIBLE_BINARIES: "Loaded libraries are of incompatible versions."
    1008: "libraries of different QAIRT releases on the phone; push all of them from one SDK: llmconv push --sdk",
    # What Qualcomm's engineers say of it: github.com/qualcomm/ai-hub-apps/issues/148
    5000: "the phone's QAIRT is older than the one that compiled the binaries, or the binaries are for another chip; "
    "push a newer SDK's libraries (llmconv push --sdk), or convert for this chip",
    # QnnDevice_create; the cause found in github.com/qualcomm/ai-hub-apps/issues/158
    14001: "the NPU could not be opened, mostly since its library (libQnnHtpV..Skel.so) of the same release is not "
    "where ADSP_LIBRARY_PATH says; push again with --sdk, and take the path from there",
}
_MISMATCH = re.compile(r"Stub lib id mismatch: expected \(v?([\d.]+)[^)]*\), detected \(v?([\d.]+)[^)]*\)")
_MISSING = re.compile(r"library \"([^\"]+)\" not found|can't execute|(\S+): (?:inaccessible or )?not found")
_NUMBER = re.compile(r"(?<![\w.])\d{4,5}(?![\w.])")
_TELLING = re.compile(r"\berr|fail|cannot|not found|denied|abort|fault|mismatch", re.IGNORECASE)


def explain(text: str, code: int) -> str:
    """What went wrong: the first cause that is known, else the first line that tells something.

    Args:
        text: all that was said.
        code: the program's exit code.
    """
    if found := _MISMATCH.search(text):
        return f"the library for the NPU is of QAIRT {found[2]}, the others are of {found[1]} (1008): {MEANINGS[1008]}"
    if found := _MISSING.search(text):
        return f"{found[1] or found[2] or 'a file'} is missing on the phone; push again with --sdk"
    lines = [line.strip() for line in text.splitlines() if _TELLING.search(line)]
    numbers = [int(number) for line in lines for number in _NUMBER.findall(line)]
    known = next((number for number in numbers if number in MEANINGS), None)
    if known is not None:
        return f"error {known}: {MEANINGS[known]}"
    said = lines[0] if lines else f"exit code {code}"
    return f"{said} (QNN's codes: {LIST})"
