"""Every private name of torch that sumexp.torch uses, in one place.

Private names can go away with any release of torch. They are looked up here, once. Where there is a slower way
without one (INSTEAD), that is taken; any other that is missing is an ImportError that says which.
tests/python/test_torch_private.py checks each name and what it is relied on for.
"""

import importlib
import warnings

import torch
from torch.autograd import forward_ad

# our name -> (module, path in it)
NAMES = {
    # Whether a functorch transform (grad, vjp, jvp, vmap, functionalize) is being carried out. torch.compile
    # knows the answer of this function while it traces; of the others that tell it does not.
    "functorch_active": ("torch._C", "_are_functorch_transforms_active"),
    # Whether a kind of dispatch is left out here, as functorch's is within a registered operation that it calls.
    "is_excluded": ("torch._C", "_dispatch_tls_is_dispatch_key_excluded"),
    "FUNCTORCH_KEY": ("torch._C", "DispatchKey.FuncTorchDynamicLayerFrontMode"),
    # These transforms, and the names of their kinds.
    "interpreter_stack": ("torch._C", "_functorch.get_interpreter_stack"),
    "TransformType": ("torch._C", "_functorch.TransformType"),
    # The tensor under the wrapper of a transform that has ended.
    "unwrap_if_dead": ("torch._C", "_functorch.unwrap_if_dead"),
    # Whether a tensor is one of a functorch transform's.
    "is_functorch_wrapped": ("torch._C", "_functorch.is_functorch_wrapped_tensor"),
    # Whether a tensor belongs to the older vmap that autograd uses for is_grads_batched and gradcheck.
    "is_legacy_batched": ("torch._C", "_functorch.is_legacy_batchedtensor"),
    # Whether a tensor stands for zeros that have no memory, as autograd's gradients may.
    "is_zero_tensor": ("torch", "Tensor._is_zerotensor"),
    # Whether it is the wrapper that torch.func.functionalize puts around one, which has no memory either.
    "is_functional": ("torch", "_is_functional_tensor"),
    # How many __torch_dispatch__ and __torch_function__ modes are active: fake tensors, make_fx, counters, ...
    "dispatch_mode_count": ("torch._C", "_len_torch_dispatch_stack"),
    "function_mode_count": ("torch._C", "_len_torch_function_stack"),
    # Whether torch.jit.trace is.
    "is_tracing": ("torch._C", "_is_tracing"),
    # Says how an operation is written in torch's own: torch.onnx.export asks.
    "register_decomposition": ("torch._decomp", "register_decomposition"),
    # torch.autograd.Function.apply without its Python wrapper, which looks for functorch transforms again.
    "FunctionBase": ("torch._C", "_FunctionBase"),
    # The attributes that save_for_backward and set_materialize_grads of a Function's ctx set; fast_path.cpp sets them.
    "to_save": ("torch._C", "_FunctionBase.to_save"),
    "materialize_grads": ("torch._C", "_FunctionBase.materialize_grads"),
    # torch.empty_strided for the CPU alone, without its dispatcher: what compiled programs allocate with.
    "empty_strided_cpu": ("torch._C", "_dynamo.guards._empty_strided_cpu"),
    # The level of forward-mode AD, -1 outside of dual_level(): an attribute that changes, so read it through
    # the module, forward_ad.
    "forward_level": ("torch.autograd.forward_ad", "_current_level"),
    # A context manager that turns forward-mode AD on or off; used through the module as well.
    "set_forward_mode": ("torch.autograd.forward_ad", "_set_fwd_grad_enabled"),
    # The tangent of a tensor at a level of forward-mode AD, also inside a registered operation.
    "unpack_dual": ("torch", "_VF._unpack_dual"),
    # Whether torch.compile is making something of a program.
    "TracingContext": ("torch._guards", "TracingContext"),
    # The dimension that softmax(x) without one takes, with torch's warning.
    "implicit_softmax_dim": ("torch.nn.functional", "_get_softmax_dim"),
    # What register_autograd registers, so that it can be wrapped.
    "make_autograd_impl": ("torch._library.autograd", "make_autograd_impl"),
    "AutogradInfo": ("torch._library.autograd", "Info"),
    # The innermost torch.autograd.graph.saved_tensors_hooks, or None.
    "saved_tensors_hooks": ("torch._C", "_autograd._top_saved_tensors_default_hooks"),
    # Tensor subclasses that stand for plain tensors while a program is traced.
    "FakeTensor": ("torch._subclasses.fake_tensor", "FakeTensor"),
    "FunctionalTensor": ("torch._subclasses.functional_tensor", "FunctionalTensor"),
}


def _empty_strided_cpu(sizes, strides, dtype):
    return torch.empty_strided(sizes, strides, dtype=dtype, device="cpu")


def _implicit_softmax_dim(name, ndim, stacklevel):
    warnings.warn(f"Implicit dimension choice for {name} has been deprecated.", stacklevel=stacklevel)
    return 0 if ndim in (0, 1, 3) else 1


# What is done without a name: the slower way, or None, and then what needs it is left out.
INSTEAD = {
    "is_functorch_wrapped": lambda t: functorch_active(),  # noqa: F821 (by _load)
    "is_tracing": torch.jit.is_tracing,
    "register_decomposition": None,
    "FunctionBase": None,
    "to_save": None,
    "materialize_grads": None,
    "empty_strided_cpu": _empty_strided_cpu,
    "saved_tensors_hooks": lambda ignore_tracing: True,
    "unpack_dual": lambda t, level: forward_ad.unpack_dual(t, level=level),
    "implicit_softmax_dim": _implicit_softmax_dim,
}


def find(module, path):
    value = importlib.import_module(module)
    for part in filter(None, path.split(".")):
        value = getattr(value, part)
    return value


def _load():
    for name, (module, path) in NAMES.items():
        try:
            globals()[name] = find(module, path)
        except (ImportError, AttributeError) as error:
            if name not in INSTEAD:
                raise ImportError(
                    f"sumexp.torch uses {module}.{path}, which torch {torch.__version__} does not have; "
                    "it has been tried with torch 2.13.0 and 2.14.1"
                ) from error
            globals()[name] = INSTEAD[name]


_load()


def has_fast_forward():
    """Whether there is what fast_path.cpp sets on the ctx of a Function."""
    return to_save is not None and materialize_grads is not None  # noqa: F821


def function_apply(function):
    """function.apply for an autograd.Function, to be called only where no functorch transform is active."""
    if FunctionBase is None:  # noqa: F821
        return function.apply
    return super(torch.autograd.Function, function).apply
