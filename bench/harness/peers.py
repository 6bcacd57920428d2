"""How each library is called for a cell.

A peer's `build` returns a function without arguments that does the whole work once and returns the result.
Every peer gets the same arrays, in its own container where it has one (made beforehand, not timed), and
writes into memory that is there already where it can: out= (sumexp, torch), a bound output (onnxruntime).
SciPy, jax and NumPy's expression allocate; workers keep freed memory (rounds.py), so that after the first
call they find it mapped.
"""

import functools

import numpy as np

from . import cells, limits


class Unsupported(Exception):
    """The peer has no such operation, or not for this dtype or axis."""


def need(condition, why):
    if not condition:
        raise Unsupported(why)


class Sumexp:
    def __init__(self, threads):
        import sumexp

        self.module = sumexp
        sumexp.set_num_threads(threads)

    def build(self, cell, inputs, out):
        return functools.partial(getattr(self.module, cell.op), *inputs, axis=cell.axis_number, out=out)

    def tiny(self, op, x):
        return functools.partial(getattr(self.module, op), x)


class SumexpTensor(Sumexp):
    """This library, called with torch tensors."""

    def __init__(self, threads):
        super().__init__(threads)
        self.torch = Torch(threads)

    def build(self, cell, inputs, out):
        return super().build(cell, tuple(map(self.torch.tensor, inputs)), self.torch.tensor(out))

    @property
    def face(self):
        try:
            import sumexp.torch
        except ImportError:
            raise Unsupported("no sumexp.torch") from None
        return sumexp.torch

    def tiny(self, op, x, recorded=False):
        return functools.partial(getattr(self.face, op), self.torch.small(x, recorded), -1)

    def between(self, q):
        return self.torch.between(q, self.face.softmax)


class Numpy:
    """The expression that a NumPy user writes."""

    def __init__(self, threads):
        pass

    def build(self, cell, inputs, out):
        need(cell.dtype in ("float32", "float64"), "float32 and float64 only")
        return functools.partial(cells.reference, cell.op, inputs, cell.axis_number)

    def tiny(self, op, x):
        return functools.partial(cells.reference, op, (x,), -1)


class Scipy:
    def __init__(self, threads):
        import scipy.special

        self.module = scipy.special

    def build(self, cell, inputs, out):
        need(not cell.op.endswith("_vjp"), "no derivatives")
        need(cell.dtype in ("float32", "float64"), "float32 and float64 only")
        return functools.partial(getattr(self.module, cell.op), inputs[0], axis=cell.axis_number)

    def tiny(self, op, x):
        return functools.partial(getattr(self.module, op), x)


class Torch:
    def __init__(self, threads):
        import torch

        self.module = torch
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)

    def tensor(self, array):
        if array.dtype.name == "bfloat16":
            return self.module.from_numpy(array.view(np.int16)).view(self.module.bfloat16)
        return self.module.from_numpy(array)

    def build(self, cell, inputs, out):
        aten, dim = self.module.ops.aten, cell.axis_number
        a, result = tuple(map(self.tensor, inputs)), self.tensor(out)
        if cell.op == "softmax":
            call = functools.partial(self.module.softmax, a[0], dim, out=result)
        elif cell.op == "log_softmax":
            call = functools.partial(self.module.log_softmax, a[0], dim, out=result)
        elif cell.op == "logsumexp":
            call = functools.partial(self.module.logsumexp, a[0], dim, out=result)
        elif cell.op == "softmax_vjp":  # what autograd calls
            call = functools.partial(aten._softmax_backward_data.out, *a, dim, a[0].dtype, grad_input=result)
        else:
            call = functools.partial(aten._log_softmax_backward_data.out, *a, dim, a[0].dtype, out=result)
        call.result = out  # the same memory, which NumPy can read
        return call

    def small(self, x, recorded):
        """x as a tensor; from here on gradients are recorded, or not."""
        self.module.set_grad_enabled(recorded)
        return self.tensor(x).requires_grad_(recorded)

    def tiny(self, op, x, recorded=False):
        return functools.partial(getattr(self.module, op), self.small(x, recorded), -1)

    def between(self, q, softmax=None):
        """softmax in turns with torch's matrix products, as in attention."""
        q, softmax = self.small(q, False), softmax or self.module.softmax
        return lambda: softmax(q @ q.mT, -1) @ q


class Onnxruntime:
    NODES = {"softmax": "Softmax", "log_softmax": "LogSoftmax", "logsumexp": "ReduceLogSumExp"}

    def __init__(self, threads):
        import onnx
        import onnxruntime

        self.onnx, self.module, self.threads = onnx, onnxruntime, threads

    def build(self, cell, inputs, out):
        need(cell.op in self.NODES, "no derivatives")
        need(cell.dtype in ("float32", "float64"), "float32 and float64 only")
        helper, types = self.onnx.helper, self.onnx.TensorProto
        kind = types.FLOAT if cell.dtype == "float32" else types.DOUBLE
        if cell.op == "logsumexp":
            node = helper.make_node("ReduceLogSumExp", ["x", "axes"], ["y"], keepdims=0)
            constants = [helper.make_tensor("axes", types.INT64, [1], [cell.axis_number])]
        else:
            node = helper.make_node(self.NODES[cell.op], ["x"], ["y"], axis=cell.axis_number)
            constants = []
        graph = helper.make_graph(
            [node],
            "cell",
            [helper.make_tensor_value_info("x", kind, inputs[0].shape)],
            [helper.make_tensor_value_info("y", kind, out.shape)],
            constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        options = self.module.SessionOptions()
        options.intra_op_num_threads = self.threads
        session = self.module.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        binding = session.io_binding()
        binding.bind_input("x", "cpu", 0, inputs[0].dtype, inputs[0].shape, inputs[0].ctypes.data)
        binding.bind_output("y", "cpu", 0, out.dtype, out.shape, out.ctypes.data)
        call = functools.partial(session.run_with_iobinding, binding)
        call.result = out
        return call

    def tiny(self, op, x):
        cell = cells.Cell(op, "float32", "last", 1, x.size, 1)
        out = np.empty(1 if op == "logsumexp" else (1, x.size), x.dtype)
        return self.build(cell, (x.reshape(1, -1),), out)


class Jax:
    def __init__(self, threads):
        import jax

        jax.config.update("jax_enable_x64", True)  # float64 arrays stay float64; others are not touched
        self.module = jax

    def jitted(self, op, axis, one_row=False):
        jax, jnp = self.module, self.module.numpy
        if op == "softmax":
            f = functools.partial(jax.nn.softmax, axis=axis)
        elif op == "log_softmax":
            f = functools.partial(jax.nn.log_softmax, axis=axis)
        elif op == "logsumexp":
            f = functools.partial(jax.nn.logsumexp, axis=axis)
        elif op == "softmax_vjp":
            # of one row, XLA's sum over a product takes 100 times what its dot product does
            dot = jnp.vdot if one_row else lambda g, y: jnp.sum(g * y, axis=axis, keepdims=True)
            f = lambda g, y: y * (g - dot(g, y))
        else:
            f = lambda g, y: g - jnp.exp(y) * jnp.sum(g, axis=axis, keepdims=True)
        return jax.jit(f)

    def build(self, cell, inputs, out):
        a = tuple(map(self.module.numpy.asarray, inputs))
        run = self.jitted(cell.op, cell.axis_number, cell.rows == 1).lower(*a).compile()
        return lambda: run(*a).block_until_ready()

    def tiny(self, op, x):
        run, a = self.jitted(op, -1), self.module.numpy.asarray(x)
        return lambda: run(a).block_until_ready()


class Numba:
    """Loops over rows as a numba user writes them: prange over rows, fastmath, one row at a time."""

    def __init__(self, threads):
        import numba

        numba.set_num_threads(threads)
        self.module = numba

    def build(self, cell, inputs, out):
        from . import peer_numba

        need(cell.axis == "last", "last axis only")
        need(cell.dtype in ("float32", "float64"), "float32 and float64 only")
        call = functools.partial(getattr(peer_numba, cell.op), *inputs, out)
        call.result = out
        return call

    def tiny(self, op, x):
        raise Unsupported("the loops take two dimensions")


class Limit:
    """One of the loops of limits.cpp, over as many bytes as one array of the cell has."""

    def __init__(self, threads, name):
        self.library, self.name = limits.load(threads), name

    def build(self, cell, inputs, out):
        # numbers, whatever the cell's dtype: 16-bit patterns read as float32 would be slow ones among others
        dtype = "float64" if cell.dtype == "float64" else "float32"
        count = cell.bytes // cells.ITEM[dtype]
        a = cells.numbers(dtype, count, 0)
        extra = {"read": 0, "exp_add": 0, "copy": 1, "copy_nt": 1, "triad": 2, "triad_nt": 2}[self.name]
        arrays = [a]
        if extra == 2:
            arrays.append(cells.numbers(dtype, count, 1))
        if extra:
            arrays.append(cells.empty(count, dtype))
            arrays[-1].fill(0)
        call = limits.loop(self.library, self.name, arrays)
        call.keep = arrays
        return call


PEERS = {
    "sumexp": Sumexp,
    "sumexp-tensor": SumexpTensor,
    "numpy": Numpy,
    "numpy-baseline": Numpy,  # with its dispatch to newer instruction sets turned off (rounds.py)
    "scipy": Scipy,
    "torch": Torch,
    "onnxruntime": Onnxruntime,
    "jax": Jax,
    "numba": Numba,
}


def make(name, threads):
    if name.startswith("limit:"):
        return Limit(threads, name.removeprefix("limit:"))
    return PEERS[name](threads)
