"""What the tests of torch tensors share."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

NAMES = ["softmax", "log_softmax", "logsumexp"]
X = torch.randn(4, 3, 6, 5, generator=torch.Generator().manual_seed(0)) * 4


def same_bytes(tensor, array):
    if tensor.dtype == torch.bfloat16:
        assert torch.equal(tensor.view(torch.int16), torch.from_numpy(array.view(np.int16)))
    else:
        assert tensor.contiguous().numpy().tobytes() == np.ascontiguousarray(array).tobytes()
