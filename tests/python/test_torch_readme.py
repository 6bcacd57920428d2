"""The code of README.md's torch section runs as it stands, block after block."""

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
README = Path(__file__).resolve().parents[2] / "README.md"


def blocks():
    section = re.search(r"^## torch\n(.*?)(?=^## |\Z)", README.read_text(), re.M | re.S)
    return re.findall(r"^```python\n(.*?)^```", section.group(1), re.M | re.S) if section else []


def test_torch_section():
    assert blocks(), "README.md has no code under '## torch'"
    names = {}
    for block in blocks():
        exec(compile(block, "README.md", "exec"), names)
    assert names["H"].shape == (8, 5, 5) and names["out"].shape == (2, 7, 16)
