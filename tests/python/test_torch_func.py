"""sumexp.torch under torch.func: every transform, nested, against torch's own functions."""

import functools

import pytest

torch = pytest.importorskip("torch")
from torch.autograd import forward_ad  # noqa: E402
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import sumexp as se  # noqa: E402
import sumexp.torch as st  # noqa: E402
from torch_cases import DERIVATIVES, FAMILIES, as_one  # noqa: E402

X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
FUNCTIONS = {
    "softmax": (lambda x: st.softmax(x, -1), lambda x: torch.softmax(x, -1)),
    "log_softmax T": (lambda x: st.log_softmax(x, 0, temperature=0.7), lambda x: torch.log_softmax(x / 0.7, 0)),
    "logsumexp": (lambda x: st.logsumexp(x, 0), lambda x: torch.logsumexp(x, 0)),
}
TRANSFORMS = {
    "grad": lambda f: grad(lambda x: f(x).sin().sum()),
    "grad grad": lambda f: grad(lambda x: grad(lambda x: f(x).sin().sum())(x).cos().sum()),
    "vjp": lambda f: lambda x: vjp(f, x)[1](torch.ones_like(f(x)))[0],
    "jvp": lambda f: lambda x: jvp(f, (x,), (x.cos(),)),
    "jvp jvp": lambda f: lambda x: jvp(lambda x: jvp(f, (x,), (x.cos(),))[1], (x,), (x.sin(),)),
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "hessian": hessian,
    "jacrev jacrev": lambda f: jacrev(jacrev(f)),
    "jacrev jacfwd": lambda f: jacrev(jacfwd(f)),
    "jacfwd jacfwd": lambda f: jacfwd(jacfwd(f)),
    "third, reverse": lambda f: lambda x: jacrev(jacrev(jacrev(f)))(x[:2, :2]),
    "third, forward": lambda f: jacfwd(jacfwd(jacfwd(f))),
    "third, mixed": lambda f: jacfwd(jacrev(jacfwd(f))),
    "vmap grad": lambda f: vmap(grad(lambda x: f(x).sin().sum())),
    "vmap hessian": lambda f: vmap(hessian(f)),
    "grad vmap": lambda f: grad(lambda x: vmap(f)(x).sin().sum()),
    "jvp vmap": lambda f: lambda x: jvp(vmap(f), (x,), (x.cos(),)),
    "vmap jvp": lambda f: vmap(lambda x: jvp(f, (x,), (x.cos(),))),
    "functionalize": torch.func.functionalize,
    "linearize": lambda f: lambda x: torch.func.linearize(f, x)[1](x.cos()),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_transforms(function, transform):
    ours, theirs = FUNCTIONS[function]
    torch.testing.assert_close(TRANSFORMS[transform](ours)(X), TRANSFORMS[transform](theirs)(X))


@pytest.mark.parametrize("in_dim", [0, 1, 2, -1])
@pytest.mark.parametrize("dim", [0, -1, 1])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_vmap_in_dims(name, dim, in_dim):
    x = torch.randn(2, 3, 4)
    for out_dim in (0, -1):
        got, want = (
            vmap(lambda x: getattr(m, name)(x, dim), in_dims=in_dim, out_dims=out_dim)(x) for m in (st, torch)
        )
        torch.testing.assert_close(got, want)
    got, want = (vmap(vmap(lambda x: getattr(m, name)(x, 0), in_dims=in_dim % 2), in_dims=1)(x) for m in (st, torch))
    torch.testing.assert_close(got, want)


def test_vmap_of_scalars_and_of_nothing():
    x = torch.randn(5)
    for name in ("softmax", "log_softmax", "logsumexp"):
        torch.testing.assert_close(
            vmap(lambda x: getattr(st, name)(x, 0))(x), vmap(lambda x: getattr(torch, name)(x, 0))(x)
        )
        captured = vmap(lambda a: a + getattr(st, name)(x, 0).sum())(torch.zeros(3))  # x is not mapped
        torch.testing.assert_close(captured, getattr(torch, name)(x, 0).sum().expand(3))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_mapped_cotangents_and_tangents(function):
    ours, theirs = FUNCTIONS[function]
    y, pullback = vjp(ours, X)
    g = torch.randn(5, *y.shape, dtype=X.dtype)
    torch.testing.assert_close(vmap(pullback)(g), vmap(vjp(theirs, X)[1])(g))
    t = torch.randn(5, *X.shape, dtype=X.dtype)
    torch.testing.assert_close(*(vmap(lambda t: jvp(f, (X,), (t,))[1])(t) for f in (ours, theirs)))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_transforms_inside_autograd(function):
    results = []
    for f in FUNCTIONS[function]:
        x = X.clone().requires_grad_()
        y = vmap(f)(x).sin().sum() + jvp(f, (x,), (x.cos(),))[1].sum() + grad(lambda x: f(x).sin().sum())(x).sum()
        results.append(torch.autograd.grad(y, x)[0])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_autograd_functional(function):
    ours, theirs = FUNCTIONS[function]
    F = torch.autograd.functional
    for options in ({}, {"vectorize": True}, {"vectorize": True, "strategy": "forward-mode"}):
        torch.testing.assert_close(*(F.jacobian(f, X, **options) for f in (ours, theirs)))
    for options in ({}, {"vectorize": True}, {"vectorize": True, "outer_jacobian_strategy": "forward-mode"}):
        torch.testing.assert_close(*(F.hessian(lambda x: f(x).sin().sum(), X, **options) for f in (ours, theirs)))


def test_a_model():
    def model(last):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3), last).double()

    def per_sample(last):
        net = model(last)
        parameters = dict(net.named_parameters())

        def loss(p, x):
            return -functional_call(net, p, (x,))[0]

        return vmap(grad(loss), in_dims=(None, 0))(parameters, X)

    torch.testing.assert_close(per_sample(st.nn.LogSoftmax(-1)), per_sample(torch.nn.LogSoftmax(-1)))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_a_tensor_that_outlives_its_transform(name):
    kept = []
    grad(lambda x: (kept.append(x), x.sum())[1])(X)
    assert torch.equal(getattr(st, name)(kept[0], -1), getattr(st, name)(X, -1))


def test_matrices_under_transforms():
    """Written in torch's operations there: the winner's entries are kept as the library keeps them."""
    x = torch.tensor([[40.0, 0.0, 1.0], [0.3, 0.2, -1.0]], dtype=torch.float64)
    for matrix, argument in (
        (se.softmax_jacobian, se.softmax(x)),
        (se.log_softmax_jacobian, se.log_softmax(x)),
        (se.logsumexp_hessian, x),
    ):
        torch.testing.assert_close(vmap(matrix)(argument), matrix(argument), rtol=1e-13, atol=0)


# -- all functions, along a direction ----------------------------------------------------------------------------


def by_dual_numbers(f, x, t):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(*map(forward_ad.make_dual, x, t))).tangent


def by_transposing(f, x, t):
    y, pullback = vjp(f, *x)
    return vjp(pullback, torch.zeros_like(y))[1](t)[0]


def by_rows(f, x, t):
    return sum((J * a).flatten(-a.dim()).sum(-1) for J, a in zip(jacrev(f, tuple(range(len(x))))(*x), t))


def by_autograd(f, x, t):
    leaves = tuple(a.clone().requires_grad_() for a in x)
    y = f(*leaves)
    u = torch.zeros_like(y).requires_grad_()
    found = torch.autograd.grad(y, leaves, u, create_graph=True)
    return torch.autograd.grad(found, u, t)[0]


def within(mode, way):
    def call(f, x, t):
        with mode():
            return way(f, x, t)

    return call


def by_jvp(f, x, t):
    return jvp(f, x, t)[1]


on_the_cpu = functools.partial(torch.device, "cpu")  # a mode that sees every function of torch
WAYS = {
    "jvp": by_jvp,
    "dual numbers": by_dual_numbers,
    "vjp of vjp": by_transposing,
    "autograd": by_autograd,
    "jvp, no_grad": within(torch.no_grad, by_jvp),
    "dual numbers, no_grad": within(torch.no_grad, by_dual_numbers),
    "jvp, default device": within(on_the_cpu, by_jvp),
    "dual numbers, default device": within(on_the_cpu, by_dual_numbers),
}


@pytest.mark.parametrize("name", [*FAMILIES, *DERIVATIVES])
def test_along_a_direction(name):
    """The differences, in every mode; and those of the change along it, which is differentiated once more."""
    f, *x = (FAMILIES | DERIVATIVES)[name]
    f, x, t = as_one(f), tuple(x), tuple(a.cos() for a in x)
    moved = lambda h: tuple(a + h * b for a, b in zip(x, t))
    difference = lambda f, h=1e-5: (f(*moved(h)) - f(*moved(-h))) / (2 * h)
    expected = difference(f)
    for way in WAYS:
        torch.testing.assert_close(WAYS[way](f, x, t), expected, rtol=1e-6, atol=1e-8, msg=lambda m, way=way: f"{way}: {m}")
    change = lambda *x: by_jvp(f, x, t)
    expected = difference(change)
    for way in (by_jvp, by_rows):
        torch.testing.assert_close(way(change, x, t), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", DERIVATIVES)
def test_gradients_of_derivatives_within_a_checkpoint(name):
    f, *x = DERIVATIVES[name]
    loss = lambda *x: as_one(f)(*x).sin().sum()
    every = tuple(range(len(x)))
    expected = grad(loss, every)(*x)
    x = [a.clone().requires_grad_() for a in x]
    torch.testing.assert_close(torch.autograd.grad(checkpoint(loss, *x, use_reentrant=False), x), expected)
    for k in every:  # and where not all are recorded
        given = [a.detach().requires_grad_(i == k) for i, a in enumerate(x)]
        (found,) = torch.autograd.grad(checkpoint(loss, *given, use_reentrant=False), given[k])
        torch.testing.assert_close(found, expected[k])


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_in_inference_mode(name):
    """Also where a mode sees torch's functions, so that they are composed."""
    f, *x = DERIVATIVES[name]
    f = as_one(f)
    for mode in (torch.no_grad, on_the_cpu):
        with torch.inference_mode(), mode():
            for given in (x, [a.clone() for a in x]):
                torch.testing.assert_close(f(*given), f(*x))
