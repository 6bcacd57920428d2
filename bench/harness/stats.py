"""Medians, spreads and intervals of ratios, from a few rounds of timings."""

import numpy as np

RESAMPLES = 2000
FEWEST = 5  # rounds below which a bootstrap claims too much: of 3 rounds, its 95 % interval holds the truth 3 times in 4


def median(samples):
    return float(np.median(samples))


def spread(samples):
    """Half the distance between the quartiles, relative to the median."""
    low, mid, high = np.percentile(samples, [25, 50, 75])
    return float((high - low) / 2 / mid)


def ratio_interval(numerator, denominator, confidence=0.95, paired=True):
    """(low, ratio of the medians, high), by bootstrap over the rounds; of fewer than FEWEST the range of what they allow.

    Two peers of one run are measured in the same rounds, so a round is drawn for both at once: a slow
    moment of the machine, which hits both, then cancels.
    """
    a, b = np.asarray(numerator, float), np.asarray(denominator, float)
    if min(len(a), len(b)) < FEWEST:
        return float(a.min() / b.max()), median(a) / median(b), float(a.max() / b.min())
    rng = np.random.default_rng(0)
    if len(a) == len(b) and paired:
        i = j = rng.integers(len(a), size=(RESAMPLES, len(a)))
    else:
        i = rng.integers(len(a), size=(RESAMPLES, len(a)))
        j = rng.integers(len(b), size=(RESAMPLES, len(b)))
    ratios = np.median(a[i], axis=1) / np.median(b[j], axis=1)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return float(low), median(a) / median(b), float(high)


def geometric_mean(values):
    return float(np.exp(np.mean(np.log(values))))
