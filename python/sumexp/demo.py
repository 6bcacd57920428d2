"""python -m sumexp demo: a softmax regression on handwritten digits, and what its logits do to formulas.

The data are the 1,797 images of 8 x 8 pixels that scikit-learn ships (a part of the UCI set of Alpaydin and
Kaynak). The model is logits = x W^T + b; its loss and gradients come from one call, linear_cross_entropy_with_grad.
"""

import importlib.util
import sys
import time

import numpy as np

import sumexp as se

TRAIN, CLASSES = 1347, 10  # three quarters to train on, 450 images held out
EPOCHS, BATCH, RATE = 300, 64, 0.05


def main(argv=()):
    if argv:
        print(f"python -m sumexp demo: got {' '.join(argv)}, accepted: nothing more, or hmm", file=sys.stderr)
        return 2
    try:
        from scipy import special as scipy_special
        from sklearn.datasets import load_digits
        from tqdm import tqdm
    except ImportError as error:
        print(f"The demo needs {error.name}: pip install 'sumexp[demo]'", file=sys.stderr)
        return 1

    pixels, target = load_digits(return_X_y=True)  # (1797, 64), grey levels 0 to 16, used as they are
    order = np.random.default_rng(0).permutation(len(pixels))
    x, target = pixels[order].astype(np.float32), target[order]
    heading("1. Train", f"{TRAIN} images, {len(x) - TRAIN} held out; Adam, {EPOCHS} epochs of batches of {BATCH}")
    w, b = train(x[:TRAIN], target[:TRAIN], tqdm)
    logits = x[TRAIN:] @ w.T + b  # (450, 10)
    held_out = target[TRAIN:]
    accuracy = np.mean(logits.argmax(axis=1) == held_out)
    print(f"held-out accuracy {accuracy:.2%}")
    # With weights in 256ths every sum of products is exact, in whatever order a BLAS adds: both have the same logits.
    even_w, even_b = np.round(w * 256) / 256, np.round(b * 256) / 256
    losses = se.linear_cross_entropy(x[TRAIN:], even_w, held_out, bias=even_b, reduction="none")
    even_logits = x[TRAIN:] @ even_w.T + even_b
    whole = se.cross_entropy(even_logits, held_out, reduction="none")
    differ = np.count_nonzero(losses.view(np.uint32) != whole.view(np.uint32))
    composed = -se.log_softmax(even_logits)[np.arange(len(logits)), held_out]
    ulp = np.max(np.abs(losses - composed) / np.spacing(losses))
    print(f"linear_cross_entropy and cross_entropy of x W^T + b: {differ} of {len(losses)} losses differ in a bit")
    # (A loss of 0 is +0, and -log_softmax -0.)
    print(f"  and -log_softmax(x W^T + b): {np.count_nonzero(losses != composed)}, by at most {ulp:.0f} ulp")

    heading("2. Overflow", f"the held-out logits of this model, {logits.min():.1f} to {logits.max():.1f}")
    overflow(logits, held_out, scipy_special)
    heading("3. Gradient", "d loss / d W by linear_cross_entropy_with_grad against central differences, in float64")
    error = gradient_error(x[:200].astype(np.float64), target[:200])
    print(f"largest difference {error:.1e} of the largest entry, over 650 parameters")
    heading("4. Time", f"microseconds, best of many; {se.get_num_threads()} threads, {instruction_set()}")
    timings(logits, scipy_special)
    heading("5. Draw", "10,000 draws of five classes at four temperatures, beside what is expected")
    draws(10_000)
    picture(logits, scipy_special)
    return 0 if accuracy > 0.94 and error < 1e-6 and not differ and ulp <= 2 else 1


def heading(title, about):
    print(f"\n{title}: {about}\n" + "-" * 79)


def instruction_set():
    return se.show_config(mode="dicts")["run time"]["instruction set"]


# -- the model ---------------------------------------------------------------------------------------------


def loss_and_gradients(x, target, w, b):
    """Mean cross-entropy of softmax(x w^T + b) and its gradients. x (n, 64), w (10, 64), b (10,)."""
    loss, _, dw, db = se.linear_cross_entropy_with_grad(x, w, target, bias=b, need=("w", "bias"))
    return loss, dw, db


def train(x, target, progress_bar):
    """Adam (Kingma & Ba 2015) with the step size falling to 0 on a cosine."""
    rng = np.random.default_rng(0)
    parameters = [np.zeros((CLASSES, x.shape[1]), x.dtype), np.zeros(CLASSES, x.dtype)]
    first = [np.zeros_like(p) for p in parameters]
    second = [np.zeros_like(p) for p in parameters]
    step = 0
    bar = progress_bar(range(EPOCHS), desc="training", unit="epoch", ncols=79)
    for epoch in bar:
        rate = RATE * (1 + np.cos(np.pi * epoch / EPOCHS)) / 2
        losses = []
        for batch in np.array_split(rng.permutation(len(x)), -(-len(x) // BATCH)):
            loss, *gradients = loss_and_gradients(x[batch], target[batch], *parameters)
            losses.append(loss)
            step += 1
            for p, m, v, g in zip(parameters, first, second, gradients):
                m += 0.1 * (g - m)
                v += 0.001 * (g * g - v)
                p -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        bar.set_postfix_str(f"loss {np.mean(losses):.1e}", refresh=False)
    return parameters


# -- what the logits do to formulas ------------------------------------------------------------------------


def overflow(logits, target, scipy_special):
    """Counts, per dtype, the held-out images on which each formula fails."""
    print(f"{'':34}{'float16':>10}{'float32':>10}{'float64':>10}   of {len(logits)} images")
    typed = [logits.astype(t) for t in (np.float16, np.float32, np.float64)]

    def table_row(name, count):
        with np.errstate(all="ignore"):
            print(f"{name:34}" + "".join(f"{count(z):10d}" for z in typed))

    def broken(p):
        return np.count_nonzero(~np.isfinite(p).all(axis=1))

    def lost(log_p):  # exactly 0: the loss says "certain", and its gradient is gone
        return np.count_nonzero(log_p.max(axis=1) == 0)

    table_row("exp(z) / sum(exp(z)) not finite", lambda z: broken(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)))
    table_row("sumexp.softmax not finite", lambda z: broken(se.softmax(z)))
    table_row("SciPy log_softmax: loss exactly 0", lambda z: lost(scipy_special.log_softmax(z, axis=1)))
    if importlib.util.find_spec("torch"):
        table_row("torch log_softmax: loss exactly 0", lambda z: lost(torch_log_softmax(z)))
    table_row("sumexp.log_softmax: loss exactly 0", lambda z: lost(se.log_softmax(z)))

    i = logits.max(axis=1).argmax()
    z = logits[i]
    with np.errstate(all="ignore"):
        naive = np.exp(z) / np.exp(z).sum()
    print(f"\nimage {i}, a {target[i]}, in float32: its largest logit is {z.max():.1f}, its exponential beyond 3.4e38")
    print(f"  exp(z) / sum(exp(z))       p({target[i]}) = {naive[target[i]]}")
    print(f"  sumexp.softmax             p({target[i]}) = {se.softmax(z)[target[i]]}")
    print(f"  scipy.special.log_softmax  loss = {abs(scipy_special.log_softmax(z)[target[i]]):.3g}")
    print(f"  sumexp.log_softmax         loss = {abs(se.log_softmax(z)[target[i]]):.3g}")


def torch_log_softmax(z):
    import torch

    return torch.log_softmax(torch.from_numpy(np.ascontiguousarray(z)), 1).numpy()


def picture(logits, scipy_special):
    """sumexp-demo.png: the losses of the likeliest classes by each formula in float32, against float64."""
    if not importlib.util.find_spec("matplotlib"):
        return
    from matplotlib.figure import Figure

    z = logits.astype(np.float32)
    exact = -se.log_softmax(z.astype(np.float64)).max(axis=1)
    formulas = {"SciPy log_softmax": -scipy_special.log_softmax(z, axis=1).max(axis=1)}
    if importlib.util.find_spec("torch"):
        formulas["torch log_softmax"] = -torch_log_softmax(z).max(axis=1)
    formulas["sumexp.log_softmax"] = -se.log_softmax(z).max(axis=1)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for (name, loss), marker in zip(formulas.items(), "x+."):
        axes.plot(exact, np.abs(loss / exact - 1).clip(1e-9), marker, markersize=5, label=name)
    axes.set(xscale="log", yscale="log", xlabel="loss of the predicted class, in float64",
             ylabel="relative error in float32 (1: it is 0)", title="What formulas leave of a small loss")
    axes.legend()
    figure.savefig("sumexp-demo.png", dpi=150)
    print("\nwritten: sumexp-demo.png")


def gradient_error(x, target):
    """The largest difference between analytic and central-difference gradients, relative to the largest."""
    rng = np.random.default_rng(1)
    parameters = [rng.normal(0, 0.02, (CLASSES, x.shape[1])), np.zeros(CLASSES)]
    _, *analytic = loss_and_gradients(x, target, *parameters)
    h, worst = 1e-5, 0.0
    for p, g in zip(parameters, analytic):
        for i in np.ndindex(p.shape):
            middle = p[i]
            p[i] = middle + h
            above = loss_and_gradients(x, target, *parameters)[0]
            p[i] = middle - h
            below = loss_and_gradients(x, target, *parameters)[0]
            p[i] = middle
            worst = max(worst, abs((above - below) / (2 * h) - g[i]))
    return worst / max(np.abs(g).max() for g in analytic)


# -- timings -----------------------------------------------------------------------------------------------


def numpy_softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def numpy_log_softmax(z):
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def numpy_logsumexp(z):
    m = z.max(axis=-1)
    return m + np.log(np.exp(z - m[..., None]).sum(axis=-1))


def timings(logits, scipy_special):
    rng = np.random.default_rng(2)
    large = rng.normal(0, 4, (1024, 4096)).astype(np.float32)
    large[np.arange(1024), rng.integers(0, 4096, 1024)] += 20  # winners, so that not every output is near 0
    print(f"{'':28}{'NumPy':>10}{'SciPy':>10}{'sumexp':>10}")
    for z in (logits[0], logits, large):
        for name in ("softmax", "log_softmax", "logsumexp"):
            calls = [globals()[f"numpy_{name}"],
                     lambda z, f=getattr(scipy_special, name): f(z, axis=-1),
                     lambda z, f=getattr(se, name): f(z, axis=-1)]
            results = [call(z) for call in calls]
            np.testing.assert_allclose(results[2], results[0], rtol=1e-3, atol=1e-5)  # agree, then be timed
            times = "".join(f"{best_time(call, z) * 1e6:10.1f}" for call in calls)
            print(f"{name + ' ' + str(z.shape):28}{times}")


def best_time(call, z, budget=0.15):
    """The shortest of as many calls as fit into `budget` seconds, at least 3."""
    best, end = np.inf, time.perf_counter() + budget
    count = 0
    while count < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call(z)
        best = min(best, time.perf_counter() - start)
        count += 1
    return best


# -- draws -------------------------------------------------------------------------------------------------


def draws(number):
    """How often each class is drawn from softmax(z / T), and how often it should be."""
    z = np.array([2.0, 1.0, 3.0, 5.0, 4.0])
    print(f"{'logits':12}" + "".join(f"{v:15.1f}" for v in z))
    for t in (0.1, 0.5, 1.0, 10.0):
        counts = np.bincount(se.sample(z, temperature=t, seed=0, num_samples=number), minlength=len(z))
        expected = number * se.softmax(z, temperature=t)
        print(f"T = {t:<8}" + "".join(f"{f'{c} ({e:.1f})':>15}" for c, e in zip(counts, expected)))
