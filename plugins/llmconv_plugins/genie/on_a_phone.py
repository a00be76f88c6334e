"""What a bundle's card says of running it on a phone with Genie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmconv.bundle import ADAPTERS
from llmconv_plugins.genie.genie_config import CONFIG, EXTENSIONS, TOKENIZER

DOCS = "docs/phones.md"


def run_on_a_phone(folder: Path, files: Sequence[str]) -> str:
    """How Genie runs a bundle on a phone, as Markdown for its card.

    Args:
        folder: of the bundle.
        files: the binaries for the device.
    """
    if not files:
        return ""
    place = "/data/local/tmp/llmconv"
    folders = sorted({str(Path(f).parent) for f in files})
    configs = [name for name in (CONFIG, EXTENSIONS, TOKENIZER) if (folder / name).is_file()]
    lines = [f"adb shell mkdir -p {' '.join(f'{place}/{name}' for name in folders)}"]
    lines += [f"adb push {file} {place}/{file}" for file in files]
    lines += [f"adb push {' '.join(configs)} {place}"] if configs else []
    lines += [f"adb push {ADAPTERS} {place}"] if (folder / ADAPTERS).is_dir() else []
    lines.append(f'adb shell "cd {place} && export LD_LIBRARY_PATH=. ADSP_LIBRARY_PATH=. &&')
    lines.append("    ./genie-t2t-run -c genie_config.json -p 'Hello'\"")
    said = [
        f"`genie-t2t-run` and its libraries come with Qualcomm's QAIRT SDK; {DOCS} of llmconv says which files "
        "they are and where on the phone they go."
    ]
    if not configs:
        said.append("This bundle has no `genie_config.json`; Genie needs one that you write.")
    return "\n\n".join([*said, "\n".join(["```sh", *lines, "```"])])
