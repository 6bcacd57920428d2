"""torch.nn's modules on this library's functions. Each is a subclass of torch's, so isinstance still holds."""

import inspect

import torch
from torch import Tensor

from . import _cross_entropy, _front, _linear

__all__ = ["CrossEntropyLoss", "LinearCrossEntropyLoss", "LogSoftmax", "Softmax", "Softmax2d"]


def _extras(module, function, given):
    """The keywords that a module hands on to its function; a TypeError for one that it has not."""
    parameters = inspect.signature(function).parameters.values()
    accepted = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for name in given:
        if name not in accepted:
            raise TypeError(f"{module}: got {name}=, accepted: torch's keywords, and {', '.join(accepted)}")
    return given


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """torch.nn.CrossEntropyLoss; further keywords are those of sumexp.torch.cross_entropy."""

    def __init__(
        self, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean", label_smoothing=0.0, **extras
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.extras = _extras("CrossEntropyLoss", _cross_entropy.cross_entropy, extras)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _cross_entropy.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            **self.extras,
        )


class LinearCrossEntropyLoss(torch.nn.LinearCrossEntropyLoss):
    """torch.nn.LinearCrossEntropyLoss without whole logits; further keywords are those of sumexp.torch.linear_cross_entropy."""

    def __init__(self, in_features: int, num_classes: int, **keywords) -> None:
        own = inspect.signature(torch.nn.LinearCrossEntropyLoss).parameters
        super().__init__(in_features, num_classes, **{n: v for n, v in keywords.items() if n in own})
        extras = {n: v for n, v in keywords.items() if n not in own}
        self.extras = _extras("LinearCrossEntropyLoss", _linear.linear_cross_entropy, extras)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        shape, bias = (self.num_classes, *self.out_features), self.linear.bias
        return _linear.linear_cross_entropy(
            input,
            self.linear.weight.reshape(*shape, self.linear.in_features),
            target,
            linear_bias=None if bias is None else bias.reshape(shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
            **self.extras,
        )


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
