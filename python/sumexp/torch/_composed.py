"""Operations with a kernel, a kernel for the gradient, and a formula: what each new function of sumexp.torch is made of.

The formula says the same in operations of torch and of sumexp.torch, which are differentiable any number of times. So a call
takes the first of these ways:

1. the formula: tensors that the kernels do not take (subclasses, meta tensors, devices that the operation has no kernels
   for), a functorch transform (grad, jvp, vmap), tangents of forward mode;
2. the registered operation torch.ops.sumexp.<name>: compiling, exporting, or a mode that watches operations;
3. an autograd.Function, where a gradient is recorded. Its backward is the gradient's kernel, and where that is to be
   differentiated again, the derivative of the formula;
4. the kernel.
"""

import functools

import torch
from torch.autograd import Function
from torch.compiler import is_compiling, is_dynamo_compiling

from ._front import is_ours, nothing_watches, way
from ._kernels import DEVICES, DTYPES, PLAIN_TYPES, is_wrapper
from ._library import LIBRARY, has_tangent, maybe_dual
from ._private import (
    AutogradInfo,
    forward_ad,
    function_apply,
    functorch_active,
    make_autograd_impl,
    register_decomposition,
    saved_tensors_hooks,
)


def eagerly(function):
    """The function, which compiled programs call outside of what they compile."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        if is_compiling():  # asked for only here: the decorator imports the compiler
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def _widened(formula, count):
    """The formula in float64: torch's operations round each step, and sums of many terms in 16 bits stand still."""

    def call(*args):
        dtype = next((t.dtype for t in args[:count] if t is not None and t.is_floating_point()), torch.float64)
        if dtype not in DTYPES or dtype == torch.float64:
            return formula(*args)
        wide = [t.double() if t is not None and t.is_floating_point() else t for t in args[:count]]
        made = formula(*wide, *args[count:])
        return made.to(dtype) if isinstance(made, torch.Tensor) else tuple(t.to(dtype) for t in made)

    return call


class Composed:
    """See above. Called with `tensors`, of which those that are not floating or None are not differentiated, then options.

    name
        Of torch.ops.sumexp.<name>; "_vjp" is added for the gradient's operation.
    tensors : tuple of str
        Names of the leading arguments; one that may be None ends in "?".
    options : str
        The further arguments as a schema has them, "int dim, float temperature=1.0".
    results : int
        1: the kernel, formula and fake return a tensor; else tuples of this many.
    kernel(*tensors, *options)
        On plain tensors of the `devices`; returns new tensors.
    gradient(gradients, tensors, results, options, needs)
        Tuples of tensors, those of `gradients` may be None; a tuple with a new tensor where `needs` says so, else None.
    formula(*tensors, *options)
        The same as kernel, differentiable. It is computed in float64, and rounded to the first tensor's dtype at the end,
        unless `widens` is False.
    fake(*tensors, *options)
        New empty tensors of the results' shapes and dtypes.
    reads_results
        Whether gradient reads `results`. Where it does not it has none, and they may be changed in place, as by loss /= 4.
    devices
        Whose tensors kernel and gradient take: all that this build serves, or some of them.
    kernel_with_gradient(*tensors, *options)
        What kernel returns, and the gradient of the first tensor for a first result's of 1, from one sweep; on the CPU. None
        where that is not one number. Optional.
    """

    def __init__(self, name, tensors, options, *, kernel, gradient, formula, fake, results=1, devices=DEVICES,
                 widens=True, reads_results=False, kernel_with_gradient=None):  # fmt: skip
        self.name, self.count, self.results, self.reads_results = name, len(tensors), results, reads_results
        self.devices = devices
        self.kernel, self.gradient, self.fake = kernel, gradient, fake
        self.kernel_with_gradient, self.expects_one = kernel_with_gradient, False
        self.formula = _widened(formula, self.count) if widens else formula
        self._register([t.rstrip("?") for t in tensors], ["?" if t.endswith("?") else "" for t in tensors], options)

    def __call__(self, *args):
        tensors = [t for t in args[: self.count] if t is not None]
        if not is_compiling() and nothing_watches() and all(map(self._is_plain, tensors)):
            watched = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
            return _apply_node(self, *args) if watched else self.kernel(*args)
        ways = [self._way(t) for t in tensors]
        if "formula" in ways:
            return self.formula(*args)
        if "op" in ways:
            return getattr(torch.ops.sumexp, self.name)(*args)
        args = (*(t if t is None else t.resolve_neg() for t in args[: self.count]), *args[self.count :])
        if "function" in ways:
            return _Node.apply(self, *args)
        return self.kernel(*args)

    def _kept(self, made):
        """Of the results, what is saved for the gradient."""
        return () if not self.reads_results else (made,) if self.results == 1 else tuple(made)

    def _is_plain(self, t):
        """Whether a tensor is one of the kernels', in memory as it seems."""
        return (
            type(t) in PLAIN_TYPES
            and t.layout is torch.strided
            and t.device.type in self.devices
            and (t.dtype in DTYPES or not t.is_floating_point())
            and not (t.is_neg() or t.is_nested or is_wrapper(t))
        )

    def _way(self, t):
        if t.is_floating_point():
            if not is_ours(self.name, t) or t.device.type not in self.devices:
                return "formula"
        elif type(t) not in PLAIN_TYPES and not is_compiling():
            return "formula"
        taken = way(t)
        if taken in ("torch", "functorch") or (taken != "kernel" and functorch_active()):
            return "formula"
        return "formula" if taken == "function" and forward_ad._current_level >= 0 else taken

    def backward(self, gradients, tensors, results, options, needs):
        """The gradients of the tensors that need one."""
        if all(u is None for u in gradients):
            return (None,) * self.count
        given = [t for t in (*gradients, *tensors) if t is not None]
        again = torch.is_grad_enabled() and any(t.requires_grad for t in given)
        again = again or (forward_ad._current_level >= 0 and any(map(has_tangent, given)))
        if again or functorch_active() or any(map(is_wrapper, given)):
            return self._through_formula(gradients, tensors, options, needs)
        plain = [u if u is None else u.resolve_neg() for u in gradients]
        if nothing_watches() and all(type(t) in PLAIN_TYPES for t in given):
            return self.gradient(tuple(plain), tensors, results, options, needs)
        made = getattr(torch.ops.sumexp, self.name + "_vjp")(plain, list(tensors), list(results), list(needs), *options)
        return tuple(t if needed else None for t, needed in zip(made, needs))

    def gradients(self, g, tensors, options=(), needs=None):
        """The gradients of the first result in plain or other tensors, for a caller that brings g."""
        needs = (True,) * self.count if needs is None else needs
        given = (g, *(None,) * (self.results - 1))
        if is_dynamo_compiling():
            return self._formula_vjp(given, tensors, options, needs)
        if any(self._way(t) == "formula" for t in (g, *tensors) if t is not None):
            return self._through_formula(given, tensors, options, needs)
        return self.backward(given, tensors, (), options, needs)

    @eagerly  # from what is compiled no gradient finds the way to `inputs`
    def _through_formula(self, gradients, tensors, options, needs):
        if functorch_active() or torch.is_inference_mode_enabled():
            return self._formula_vjp(gradients, tensors, options, needs)
        with torch.enable_grad():
            inputs = [t.view_as(t).requires_grad_() if needed else t for t, needed in zip(tensors, needs)]
            results = self.formula(*inputs, *options)
            results = (results,) if self.results == 1 else results
            pairs = [(y, u) for y, u in zip(results, gradients) if u is not None and y.requires_grad]
            wanted = [t for t, needed in zip(inputs, needs) if needed]
            found = iter(
                torch.autograd.grad(
                    [y for y, _ in pairs],
                    wanted,
                    [u for _, u in pairs],
                    create_graph=torch.is_grad_enabled(),
                    materialize_grads=True,
                )
            )
        return tuple(next(found) if needed else None for needed in needs)

    def _formula_vjp(self, gradients, tensors, options, needs):
        """As _through_formula, where autograd itself records nothing: within transforms, and in inference mode."""

        def of(*wanted):
            wanted = iter(wanted)
            results = self.formula(*(next(wanted) if needed else t for t, needed in zip(tensors, needs)), *options)
            results = (results,) if self.results == 1 else results
            return tuple(y for y, u in zip(results, gradients) if u is not None)

        _, vjp = torch.func.vjp(of, *(t for t, needed in zip(tensors, needs) if needed))
        found = iter(vjp(tuple(u for u in gradients if u is not None)))
        return tuple(next(found) if needed else None for needed in needs)

    # -- the registered operations --------------------------------------------------------------------------

    def _register(self, names, marks, options):
        name, count = self.name, self.count
        tags = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)
        further = [options] if options else []
        arguments = ", ".join([f"Tensor{mark} {n}" for n, mark in zip(names, marks)] + further)
        returned = "Tensor" if self.results == 1 else f"({', '.join(['Tensor'] * self.results)})"
        LIBRARY.define(f"{name}({arguments}) -> {returned}", tags=tags)
        lists = ["Tensor?[] gradients", "Tensor?[] tensors", "Tensor[] results", "bool[] needs"]
        LIBRARY.define(f"{name}_vjp({', '.join(lists + further)}) -> Tensor[]", tags=tags)

        def vjp(gradients, tensors, results, needs, *rest):
            made = self.gradient(tuple(gradients), tuple(tensors), tuple(results), rest, tuple(needs))
            first = next(t for t in tensors if t is not None)
            return [first.new_empty(0) if t is None else t for t in made]

        def fake_vjp(gradients, tensors, results, needs, *rest):
            first = next(t for t in tensors if t is not None)
            empty = [torch.empty_like(t, memory_format=torch.contiguous_format) if n else None for t, n in zip(tensors, needs)]
            return [first.new_empty(0) if t is None else t for t in empty]

        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs[:count], *self._kept(output))
            ctx.rest = inputs[count:]

        def backward(ctx, *gradients):
            tensors, results = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
            needs = tuple(ctx.needs_input_grad[:count])
            if torch.is_grad_enabled() and any(t.requires_grad for t in tensors if t is not None):
                found = self._through_formula(gradients, tensors, ctx.rest, needs)
            else:
                made = getattr(torch.ops.sumexp, name + "_vjp")(
                    list(gradients), list(tensors), list(results), list(needs), *ctx.rest
                )
                found = tuple(t if needed else None for t, needed in zip(made, needs))
            return *found, *(None for _ in ctx.rest)

        operation = getattr(torch.ops.sumexp, name).default
        reverse = make_autograd_impl(operation, AutogradInfo(backward, setup_context))

        def autograd(keyset, *args):
            tensors = [t for t in args[:count] if t is not None]
            if functorch_active() or (maybe_dual() and any(map(has_tangent, tensors))):
                return self.formula(*args)
            return reverse(keyset, *args)

        LIBRARY.impl(name, self.kernel, "CPU")
        LIBRARY.impl(name, self.kernel if "cuda" in self.devices else self.formula, "CUDA")
        LIBRARY.impl(name, autograd, "Autograd", with_keyset=True)
        for device in self.devices:
            LIBRARY.impl(name + "_vjp", vjp, device.upper())
        no_second = make_autograd_impl(getattr(torch.ops.sumexp, name + "_vjp").default, AutogradInfo(None, None))
        LIBRARY.impl(name + "_vjp", no_second, "Autograd", with_keyset=True)
        torch.library.register_fake(f"sumexp::{name}", self.fake, lib=LIBRARY)
        torch.library.register_fake(f"sumexp::{name}_vjp", fake_vjp, lib=LIBRARY)
        if register_decomposition is not None:
            register_decomposition(operation)(self.formula)


class _Node(Function):
    """Where the gradient comes from the same sweep as the result, it is made ahead: in most programs backward brings a 1.

    So it is if the last backward was of this kind and no forward came between, as in a loop of both. Then the gradient is
    handed over, once; what is saved serves any other backward. Its bytes are the same either way, but where memory was changed
    in between behind autograd's back (by x.data, or an array under a tensor).
    """

    @staticmethod
    def forward(ctx, op, *args):
        made = ctx.ahead = None
        if op.expects_one and ctx.needs_input_grad[1] and not any(ctx.needs_input_grad[2:]) and not saved_tensors_hooks(False):
            op.expects_one = False
            if args[0].is_cpu and (both := op.kernel_with_gradient(*args)):
                made, ctx.ahead = both
        if made is None:
            made = op.kernel(*args)
        results = (made,) if op.results == 1 else tuple(made)
        ctx.op, ctx.rest = op, args[op.count :]
        ctx.save_for_backward(*args[: op.count], *op._kept(made))
        ctx.mark_non_differentiable(*(t for t in results if not t.is_floating_point()))
        ctx.set_materialize_grads(False)
        return made

    @staticmethod
    def backward(ctx, *gradients):
        op, saved = ctx.op, ctx.saved_tensors
        needs = tuple(ctx.needs_input_grad[1 : 1 + op.count])
        if op.kernel_with_gradient and is_one(*gradients):
            ahead, ctx.ahead, op.expects_one = ctx.ahead, None, True
            if ahead is not None and not torch.is_grad_enabled():
                return None, ahead, *(None for _ in (*needs[1:], *ctx.rest))
        found = op.backward(gradients, saved[: op.count], saved[op.count :], ctx.rest, needs)
        return None, *found, *(None for _ in ctx.rest)


def is_one(gradient, *others):
    """Whether the first result's gradient is a 1 that can be looked at, and there is no other."""
    return (
        gradient is not None
        and type(gradient) in PLAIN_TYPES
        and gradient.dim() == 0
        and gradient.is_cpu
        and all(g is None for g in others)
        and nothing_watches()
        and not is_wrapper(gradient)
        and gradient.item() == 1
    )


_apply_node = function_apply(_Node)
