"""The Python code of README.md's examples and of its torch section runs as it stands, block after block."""

import re
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).resolve().parents[2] / "README.md"


def run(title):
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README.read_text(), re.M | re.S)
    blocks = re.findall(r"^```python\n(.*?)^```", section.group(1), re.M | re.S) if section else []
    assert blocks, f"README.md has no code under '## {title}'"
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    return names


def test_examples():
    names = run("Examples")
    x, se = names["x"], names["se"]
    assert names["dh"].shape == x.shape and names["dw"].shape == names["w"].shape
    assert names["tokens"].shape == (1000,) and (names["counts"].sum(-1) == 10**13).all()
    assert not names["a"][0].any() and np.isclose(names["g"][:300].sum(0), 1, rtol=1e-6, atol=0).all()
    assert names["m"].shape == (50, 50)
    assert names["total"].result().tobytes() == se.logsumexp(x, axis=0).tobytes()


def test_torch_section():
    pytest.importorskip("torch")
    names = run("torch")
    assert names["H"].shape == (8, 5, 5) and names["out"].shape == (2, 7, 16)
