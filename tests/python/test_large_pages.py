"""Large results of sumexp.torch lie in memory for which large pages were asked, as NumPy's do; no other memory is touched."""

import mmap
import pathlib
import re

import numpy as np
import pytest

import sumexp as se

torch = pytest.importorskip("torch")
from sumexp import torch as st  # noqa: E402

SMAPS = pathlib.Path("/proc/self/smaps")
ROWS, CLASSES = 1280, 8192  # 42 MB: malloc takes them from the system anew, if no freed memory serves


def asked(t):
    """Whether the kernel was asked for large pages of the memory in the middle of a tensor."""
    address, found = t.data_ptr() + t.nbytes // 2, None
    for line in SMAPS.read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            found = int(match[1], 16) <= address < int(match[2], 16)
        elif found and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError("the tensor is nowhere")


if not SMAPS.exists():
    pytest.skip("this system does not tell what was asked for memory (/proc/self/smaps)", allow_module_level=True)
if not pathlib.Path("/sys/kernel/mm/transparent_hugepage").exists():
    pytest.skip("this kernel has no large pages to ask for", allow_module_level=True)
if asked(torch.empty(ROWS, CLASSES)):
    pytest.skip("torch itself asks for large pages here (THP_MEM_ALLOC_ENABLE)", allow_module_level=True)


def gradient(call):
    def made(x):
        leaf = x.requires_grad_()
        call(leaf).sum().backward()
        return leaf.grad

    return made


TARGET = torch.arange(ROWS) % CLASSES
CALLS = {
    "softmax": lambda x: st.softmax(x, 1),
    "softmax of an axis that is not last": lambda x: st.softmax(x, 0),
    "log_softmax": lambda x: st.log_softmax(x, 1),
    "softmax, recorded": lambda x: st.softmax(x.requires_grad_(), 1),
    "softmax, over a mask": lambda x: st.masked_softmax(x, lengths=TARGET + 1),
    "logcumsumexp": lambda x: st.logcumsumexp(x, 1),
    "softplus": st.softplus,
    "logaddexp": lambda x: st.logaddexp(x, x),
    "segment_softmax": lambda x: st.segment_softmax(x, offsets=torch.tensor([0, 5, ROWS])),
    "softmax's gradient": gradient(lambda x: st.softmax(x, 1)),
    "log_softmax's gradient": gradient(lambda x: st.log_softmax(x, 1)),
    "logsumexp's gradient": gradient(lambda x: st.logsumexp(x, 1)),
    "cross_entropy's gradient": gradient(lambda x: st.cross_entropy(x, TARGET)),
    "cross_entropy_with_grad": lambda x: se.cross_entropy_with_grad(x, TARGET, 1)[1],
    "entropy's gradient": gradient(lambda x: st.entropy(x, 1)),
    "softmax_vjp": lambda x: se.softmax_vjp(x, x, 1),
}


@pytest.mark.parametrize("name", CALLS)
def test_large_pages_are_asked_for_results(name):
    assert asked(CALLS[name](torch.zeros(ROWS, CLASSES)).detach())


def given():
    """Zeros in a mapping of their own: malloc may hand out memory again for which somebody asked before."""
    return torch.frombuffer(mmap.mmap(-1, ROWS * CLASSES * 4, flags=mmap.MAP_PRIVATE), dtype=torch.float32).view(ROWS, CLASSES)


def test_not_for_memory_that_is_given():
    out, x = given(), given()
    se.softmax(x, 1, out=out)
    assert not asked(out) and not asked(x)


def test_numpy_asks_for_its_own():
    """Why sumexp does not, for arrays."""
    assert asked(torch.from_numpy(np.empty((ROWS, CLASSES), np.float32)))
