"""The arguments of every function: errors name them as the called function does, sumexp's names or torch's in sumexp.torch;
integers are of the default dtype."""

import inspect
import re

import pytest

torch = pytest.importorskip("torch")

import sumexp as se  # noqa: E402
import sumexp.torch as st  # noqa: E402

X, ROW, INDEX = torch.linspace(0, 1, 12).reshape(3, 4), torch.ones(3), torch.tensor([1, 3, 0])
W, ONE, OFFSETS, MASK = torch.ones(5, 4), torch.tensor(1.0), torch.tensor([0, 1, 3]), X > -1
_masks = {"where": MASK, "bias": X, "sink": ROW, "lengths": INDEX}
_losses = {"target": INDEX, "token_weight": ROW}
_linear = {"x": X, "w": W, "bias": torch.ones(5), "weight": torch.ones(5), **_losses}
# the tensors of sumexp's functions
GIVEN = {
    "softmax": {"x": X, "where": MASK}, "log_softmax": {"x": X}, "logsumexp": {"x": X, "b": X},
    "softmax_vjp": {"g": X, "y": X}, "log_softmax_jvp": {"t": X, "y": X}, "softmax_hvp": {"g": X, "v": X, "y": X},
    "logsumexp_vjp": {"g": ONE, "x": X, "b": X + 1}, "logsumexp_jvp": {"t": X, "x": X, "b": X + 1, "t_b": X},
    "softmax_jacobian": {"y": X}, "logsumexp_hessian": {"x": X},
    "entropy": {"logits": X}, "entropy_vjp": {"g": ROW, "logits": X}, "log_prob": {"logits": X, "index": INDEX},
    "log_prob_vjp": {"g": ROW, "logits": X, "index": INDEX}, "log_prob_and_entropy": {"logits": X, "index": INDEX},
    "kl_div": {"p_logits": X, "q_logits": X}, "kl_div_vjp": {"g": ROW, "p_logits": X, "q_logits": X},
    "cross_entropy": {"logits": X, "weight": torch.ones(4), "denominator": ONE, **_losses},
    "cross_entropy_with_grad": {"logits": X, **_losses}, "cross_entropy_vjp": {"g": ONE, "logits": X, **_losses},
    "linear_cross_entropy": _linear, "linear_cross_entropy_with_grad": _linear,
    "linear_cross_entropy_vjp": {"g": ONE, **_linear}, "linear_sample": {"x": X, "w": W, "bias": torch.ones(5)},
    "sample": {"logits": X, "where": MASK}, "sample_counts": {"logits": X, "num_samples": 3}, "gumbel_softmax": {"logits": X},
    "log1mexp": {"x": X}, "softplus": {"x": X}, "logaddexp": {"a": X, "b": X}, "logsubexp": {"a": X, "b": X},
    "softplus_vjp": {"g": X, "x": X}, "logaddexp_vjp": {"g": X, "a": X, "b": X},
    "logsubexp_jvp": {"ta": X, "tb": X, "a": X, "b": X}, "logmeanexp": {"x": X, "b": X, "where": MASK},
    "logcumsumexp": {"x": X}, "logcumsumexp_vjp": {"g": X, "x": X}, "logcumsumexp_jvp": {"t": X, "x": X},
    "logmatmulexp": {"a": X, "b": X.T}, "logmatmulexp_vjp": {"g": torch.ones(3, 3), "a": X, "b": X.T},
    "logmatmulexp_jvp": {"ta": X, "tb": X.T, "a": X, "b": X.T},
    "masked_softmax": {"x": X, **_masks}, "masked_logsumexp_vjp": {"g": ROW, "x": X, **_masks},
    "segment_softmax": {"x": X, "offsets": OFFSETS}, "segment_softmax_vjp": {"g": X, "y": X, "offsets": OFFSETS},
    "segment_logsumexp_jvp": {"t": X, "x": X, "ids": torch.tensor([0, 1, 1])},
}  # fmt: skip
MAIN = ("x", "y", "a", "b", "w", "logits", "p_logits", "q_logits")
TORCHS = {"logits": "input", "x": "input", "a": "input", "b": "other", "w": "linear_weight", "bias": "linear_bias"}
BAD = {
    "None": lambda t: None, "list": lambda t: [t.tolist()], "complex": lambda t: t.to(torch.complex64), "bool": lambda t: t > 0,
    "other kind": lambda t: t.long() if t.is_floating_point() else t.float(), "double": lambda t: t.double(),
    "shape": lambda t: t.new_zeros((2, 7, 5)), "0-d": lambda t: t.new_zeros(()),
}  # fmt: skip
# torch's own errors, of operations that are torch's there
OWN = (r"The size of tensor a|.* not implemented for|Could not infer dtype|.*has nothing to draw from in row 0|"
       r".*neither of offsets")


def named(name, parameters):
    return name if name in parameters else TORCHS.get(name, name)


CASES = [(module, name) for module in (se, st) for name in GIVEN if hasattr(module, name)]


@pytest.mark.parametrize("module, name", CASES, ids=[f"{m.__name__}.{n}" for m, n in CASES])
def test_arguments_are_called_by_the_functions_names(module, name):
    function = getattr(module, name)
    parameters = inspect.signature(function).parameters
    given = {named(n, parameters): t for n, t in GIVEN[name].items()}
    given = {n: t for n, t in given.items() if n in parameters}
    more = {"dim": -1} if "dim" in parameters else {}
    function(**given, **more)
    changes = [{n: make(t)} for n, t in given.items() if isinstance(t, torch.Tensor) for make in BAD.values()]
    changes += [{n: bad} for n in ("axis", "dim") if n in parameters for bad in ("a", True, 9)]
    for change in changes:
        try:
            function(**{**given, **more, **change})
        except Exception as error:
            text = str(error).splitlines()[0]
        else:
            continue
        if not re.match(OWN, text):
            found = re.match(rf"{name}: (\w+)(\[\d\])?( is| has| and \w+ have|:) ", text)
            assert found and found[1] in parameters, (change, text)
            others = re.findall(r"(?:as of|that of|where|as) (\w+)(?: is| has|$)", text)
            assert all(n in parameters or n in ("the", "it") for n in others), (change, text)


@pytest.mark.parametrize("name", GIVEN)
def test_integers_are_of_the_default_dtype(name):
    """In sumexp's functions, as README has it; sumexp.torch does as torch does."""
    function, given = getattr(se, name), GIVEN[name]
    options = {"seed": 1} if "sampl" in name or name.startswith("gumbel") else {}
    numbers = {n: t for n, t in given.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}
    for dtype in (torch.int64, torch.uint8, torch.bool):
        whole = {n: (t * 3).to(dtype) for n, t in numbers.items() if dtype is not torch.bool or n in MAIN}
        made = function(**{**given, **whole}, **options)
        want = function(**{**given, **{n: t.to(torch.get_default_dtype()) for n, t in whole.items()}}, **options)
        made, want = (r if isinstance(r, tuple) else (r,) for r in (made, want))
        for a, b in zip(made, want):
            assert a.dtype is b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("call", [
    lambda x: st.softmax(x, -1), lambda x: st.cross_entropy(x, INDEX), lambda x: st.linear_cross_entropy(x, W, INDEX),
    lambda x: st.gumbel_softmax(x),
])  # fmt: skip
def test_integers_raise_where_they_do_in_torch(call):
    with pytest.raises((TypeError, NotImplementedError)):
        call(X.long())
