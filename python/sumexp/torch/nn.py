"""torch.nn's modules on this library's functions. Each is a subclass of torch's, so isinstance still holds."""

import torch
from torch import Tensor

from . import _front

__all__ = ["LogSoftmax", "Softmax", "Softmax2d"]


class Softmax(torch.nn.Softmax):
    def forward(self, input: Tensor) -> Tensor:
        return _front.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(torch.nn.LogSoftmax):
    def forward(self, input: Tensor) -> Tensor:
        return _front.log_softmax(input, self.dim, _stacklevel=5)


class Softmax2d(torch.nn.Softmax2d):
    def forward(self, input: Tensor) -> Tensor:
        if input.dim() not in (3, 4):
            raise ValueError(f"Softmax2d: expected input to be 3D or 4D, got {input.dim()}D instead")
        return _front.softmax(input, -3, _stacklevel=5)
