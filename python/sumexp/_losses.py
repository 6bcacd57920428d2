"""Cross-entropy and its gradient, for NumPy. Tensors of torch go to sumexp.torch._cross_entropy."""

import numpy as np

from . import _arrays, _core
from ._devices import is_torch
from ._loss_arguments import (
    INFO,
    RAW_INFO,
    check_denominator,
    check_ignored,
    checked_options,
    denominator_number,
    known_names,
    tokens_power,
)
from ._row_shapes import row_axis, without


def cross_entropy(logits, target, axis=-1, *, weight=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, softcap=None,
                  temperature=1.0, token_weight=None, reduction="mean", denominator=None, on_empty="nan", info=(), out=None):
    """Cross-entropy of logits against a target: the mean over rows of -log softmax(logits)[target], and what training adds.

    With z = softcap * tanh(logits / softcap) / temperature (as far as given; infinite logits stay infinite), p = softmax(z)
    and lse = logsumexp(z), the loss of a row of C classes is

        token_weight * (sum_j a_j (lse - z_j) + z_loss * lse**2)
        a_j = weight_j ((1 - label_smoothing) y_j + label_smoothing / C)

    as in torch.nn.functional.cross_entropy, whose conventions hold where there are such. Classes with a_j = 0 add nothing,
    also where their logit is -inf; one of -inf with a_j > 0 makes the loss +inf.

    Parameters
    ----------
    logits : array
        Of float16, bfloat16, float32 or float64; integers become float64. Classes lie along `axis`; "rows" is the shape
        without it.
    target : array or pair of arrays
        Integers of any width and shape rows: the class of each row. Or floating, of logits' shape: y itself. Or a tuple
        (indices, weights) of shapes rows + (K,): y is the sum of K classes with a weight each, as of a teacher's top K.
    axis : int
        Of the classes.
    weight : array (C,)
        Of the classes.
    ignore_index : int
        Rows with this target are not read; their loss and gradient are 0. (Not of probabilities. Of pairs, one that has this
        index is left out, and a row is ignored if none is left.)
    label_smoothing, z_loss : float
        In [0, 1], and at least 0.
    softcap, temperature : float
        Above 0. softcap=None: none. An infinite temperature makes every finite logit 0. In a row where a logit over the
        temperature would overflow, all are taken less the largest: differences count, and z_loss is of log S as it is.
    token_weight : array that broadcasts to rows
        Weights of the rows, on loss and gradient.
    reduction : "mean", "sum" or "none"
        The mean divides by the sum of weight[target] * token_weight over the rows that are not ignored, and where targets are
        no indices by the sum of token_weight.
    denominator : number or 0-d array
        What the mean divides by instead, as with gradients that are added up over several calls.
    on_empty : "nan" or "zero"
        The mean where the denominator is 0; "zero" makes loss and gradient 0.
    info : sequence of names
        What to return besides, one a row, from the same sweep: "lse"; "log_prob", sum_j y_j log p_j, which is the target's
        log-probability; "entropy" of p; "z_loss", that part of the loss; all of these in float32 for logits of 16 bits;
        "predicted", the (first) class with the largest z, -1 for rows with NaN; "correct", whether that is the target (the
        one with the largest y). Of rows that are ignored these are 0, -1 and False.
    out : array
        For the loss: of its shape and dtype.

    Returns
    -------
    The loss in the dtype of logits, a number, or with reduction="none" an array of shape rows; with info (loss, {name: array}).
    Index targets without options: within 4 ulp of the exact value, also as p goes to 1. With options within 9 eps of
    the sum of the absolute parts, token_weight * (sum_j |a_j| (|lse| + |z_j|) + z_loss lse**2), and without softcap and
    temperature of token_weight * (sum_j |a_j| (lse - z_j) + z_loss lse**2). z is logits / temperature, capped, as the type that
    computes rounds it. eps is half the machine epsilon; 16-bit results are computed in float32 and rounded once, and the loss
    of a target that is one class before its weights multiply it. Rows are added in one order, whatever the threads, in float64
    or a pair of them.

    Raises
    ------
    TypeError for dtypes and kinds of arguments, ValueError for shapes, options and targets out of range; nothing is written.
    On CUDA devices, which are served where they have torch's tensors, nothing waits for the targets: one out of range makes the
    loss and the gradient of its row NaN.
    """
    return _run("cross_entropy", **locals())


def cross_entropy_with_grad(logits, target, axis=-1, *, weight=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0,
                            softcap=None, temperature=1.0, token_weight=None, reduction="mean", denominator=None,
                            on_empty="nan", info=(), out=None):
    """cross_entropy and its gradient with respect to logits, from one sweep.

    Parameters
    ----------
    out : array
        For the gradient; may be logits itself, which it then overwrites. No other array of their size is made.
    others
        As in cross_entropy.

    Returns
    -------
    (loss, gradient), or (loss, gradient, {name: array}) with info. With reduction="none" the gradient is that of the sum of
    the losses. Of index targets without options every element is within 4 ulp. With options it is within 16 eps of
    its absolute parts, f ((sum_k |a_k| + 2 z_loss |lse|) p_j + |a_j|) dz_j/dlogits_j with f the row's factor, and with softcap
    or temperature within 16 eps of (1 + |z_j| + |lse|) times that. (z is rounded to the type that computes; where eps |z_j| is
    not small, this holds of the gradient at the rounded z. The element at a target of one class whose weight is 0 has |z_t - m|
    eps of itself more, m being the largest logit.)

    Raises
    ------
    As cross_entropy.
    """
    return _run("cross_entropy_with_grad", **locals())


def cross_entropy_vjp(g, logits, target, axis=-1, *, weight=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0,
                      softcap=None, temperature=1.0, token_weight=None, reduction="mean", denominator=None, on_empty="nan",
                      out=None):
    """The gradient of cross_entropy with respect to logits, for a gradient g of its loss.

    g is a number, or with reduction="none" an array that broadcasts to rows; out and all else are as in
    cross_entropy_with_grad, whose gradient this is for g = 1.
    """
    return _run("cross_entropy_vjp", **locals())


def _run(function, logits, target, axis, *, out=None, **options):
    if is_torch(logits) or is_torch(options.get("g")):
        from .torch import _cross_entropy

        return _cross_entropy.from_package(function, logits, target, axis, out=out, **options)
    with_g, g = "g" in options, options.pop("g", None)
    call = Call(function, logits, target, axis, **options)
    if function == "cross_entropy":
        view = call.place_for_loss(out)
        loss = call.run()
        if out is None:
            return call.results(loss)
        view[...] = loss
        return call.results(out, back=False)
    if with_g:
        g = call.of_loss("g", g)
    gradient = call.place_for_gradient(out, g)
    loss = call.run(loss=not with_g, g=g, dlogits=gradient)
    gradient = call.back(gradient) if out is None else out
    return gradient if with_g else call.results(loss, gradient)


class Call:
    """The arguments of a call, checked and ready for the raw entry; its results."""

    def __init__(self, function, logits, target, axis, *, weight, token_weight, denominator, info=(), **options):
        self.function = function
        (self.logits,), self.back = _arrays.together(function, logits=logits)
        shape = self.logits.shape
        self.axis = row_axis(function, "logits", shape, axis)
        self.rows = without(shape, self.axis)
        self.number = np.dtype(np.float64 if self.logits.dtype == np.float64 else np.float32)
        self.target, target_weight = self._target(target)
        options = checked_options(function, **options)
        self.reduction = options["reduction"]
        self.info = known_names(function, "info", info, INFO)
        of_indices = self.target.dtype.kind in "iu"
        if not of_indices:
            check_ignored(function, options["ignore_index"])
        if denominator is not None:
            check_denominator(function, self.reduction)
            denominator = denominator_number(function, denominator)
        given = self.arguments = {
            **options,
            "target_weight": target_weight,
            "weight": None if weight is None else self._class_weight(weight),
            "token_weight": None if token_weight is None else self.of_rows("token_weight", token_weight),
            "denominator": denominator,
            "function": function,
        }
        if self.reduction == "mean" and token_weight is not None:
            tokens, index = given["token_weight"], self.target if of_indices else None
            if power := tokens_power(tokens, self.number, index, given["weight"], options):
                with np.errstate(over="ignore", under="ignore"):
                    given["token_weight"] = np.asarray(np.ldexp(tokens, power))
                    if denominator is not None:
                        given["denominator"] = float(np.ldexp(denominator, power))

    def _target(self, target):
        """(indices or probabilities, weights of pairs or None)"""
        function, shape, weights = self.function, self.logits.shape, None
        if isinstance(target, tuple) and len(target) == 2 and np.ndim(target[1]) > 0:
            target, weights = target
        array = _arrays.ingest(function, "target", target)
        if array.size == 0 and not hasattr(target, "dtype"):  # an empty list
            array = array.astype(np.int64)
        if array.dtype.kind == "b":
            raise TypeError(f"{function}: target has dtype bool, accepted: integers, or probabilities of a floating dtype")
        array = _arrays.native(array)
        if weights is not None:
            weights = _arrays.ingest(function, "target[1]", weights)
            if array.dtype.kind not in "iu":
                raise TypeError(f"{function}: target[0] has dtype {array.dtype}, accepted: integers")
            if weights.dtype.kind in "biu":
                weights = weights.astype(np.float64)
            weights = _arrays.native(weights)
            if array.ndim != len(self.rows) + 1 or array.shape[:-1] != self.rows:
                raise ValueError(f"{function}: target[0] has shape {array.shape}, accepted: {self.rows} and a last dimension K")
            if weights.shape != array.shape:
                raise ValueError(f"{function}: target[1] has shape {weights.shape}, accepted: {array.shape}, as target[0]")
            if array.shape[-1] == 0:
                raise ValueError(f"{function}: target[0] has shape {array.shape}, accepted: at least one class a row")
            return array, weights
        accepted = self.rows if array.dtype.kind in "iu" else shape
        if array.shape != accepted:
            kind = "indices" if array.dtype.kind in "iu" else "probabilities"
            raise ValueError(f"{function}: target has shape {array.shape}, accepted: {accepted} of {kind} (logits: {shape})")
        return array, None

    def _class_weight(self, weight):
        array = _arrays.ingest(self.function, "weight", weight)
        classes = self.logits.shape[self.axis]
        if array.shape != (classes,):
            raise ValueError(f"{self.function}: weight has shape {array.shape}, accepted: ({classes},)")
        return np.require(array, self.number, ["C", "ALIGNED", "ENSUREARRAY"])

    def of_rows(self, argument, value):
        array = np.require(_arrays.ingest(self.function, argument, value), np.float64, ["ALIGNED", "ENSUREARRAY"])
        try:
            return np.broadcast_to(array, self.rows)
        except ValueError:
            raise ValueError(
                f"{self.function}: {argument} has shape {array.shape}, accepted: what broadcasts to {self.rows}"
            ) from None

    def of_loss(self, argument, value):
        """A number, or where the loss has one a row that, as numbers of the rows."""
        array = self.of_rows(argument, value)
        if self.reduction != "none" and any(array.strides):
            raise ValueError(f"{self.function}: {argument} has a number for each row, accepted: one, as of the loss")
        return array

    def inputs(self):
        return [self.logits, self.target, *(self.arguments[n] for n in ("target_weight", "token_weight", "weight"))]

    def place_for_gradient(self, out, g=None):
        return _arrays.result(self.function, out, self.logits.shape, self.logits.dtype, *self.inputs(), g)

    def place_for_loss(self, out):
        shape = self.rows if self.reduction == "none" else ()
        return None if out is None else _arrays.result(self.function, out, shape, self.logits.dtype, *self.inputs())

    def run(self, loss=True, **further):
        """The loss, an ndarray; leaves the arrays of info in self.found."""
        dtypes = {"predicted": np.int64, "correct": np.bool_}
        self.found = {n: np.empty(self.rows, dtypes.get(n, self.number)) for n in self.info}
        if loss:
            loss = further["loss"] = np.empty(self.rows if self.reduction == "none" else (), self.logits.dtype)
        _core._cross_entropy(self.logits, self.target, self.axis, **self.arguments, **further,
                             **{RAW_INFO[n]: a for n, a in self.found.items()})
        return loss

    def results(self, loss, *gradient, back=True):
        results = (self.back(loss) if back else loss, *gradient)
        if self.info:
            results += ({n: self.back(a) for n, a in self.found.items()},)
        return results if len(results) > 1 else results[0]
