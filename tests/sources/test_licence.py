"""What a checkpoint folder says about its licence."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmconv.sources.licence import Licence, licence_of


def test_nothing(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# A model\n\nlicense: mit\n")
    (tmp_path / "config.json").write_text("{}")
    assert licence_of(tmp_path) == Licence()


@pytest.mark.parametrize("name", ["LICENSE", "LICENSE.txt", "LICENCE.md", "license.txt", "USE_POLICY.md", "Notice"])
def test_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("terms")
    assert licence_of(tmp_path).files == (tmp_path / name,)


def test_front_matter(tmp_path: Path) -> None:
    text = (
        "---\nlanguage:\n- en\nlicense: other\nlicense_name: 'llama2 community'\nlicense_link: LICENSE.txt\n---\n# A\n"
    )
    (tmp_path / "README.md").write_text(text)
    assert licence_of(tmp_path) == Licence("llama2 community", "LICENSE.txt")


@pytest.mark.parametrize("text", ["---\nlicense: mit\n", "x\n---\nlicense: mit\n---\n", "---\nlicense:\n- mit\n---\n"])
def test_what_is_no_front_matter_or_names_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert licence_of(tmp_path).name is None


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\nlicense: mit\nx: \xff\n---\n")
    assert licence_of(tmp_path).name == "mit"
