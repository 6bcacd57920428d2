"""What sumexp should return: references, ulps, adversarial rows, and the table of bounds.

    formats    the four element types and the ulp of a value in them
    reference  the operations in numpy.longdouble, and the forward ones in mpmath
    rows       families of inputs on which implementations go wrong
    bounds     the promise, once: every accuracy test and report reads it from here
    ops        every operation as inputs + call, for tests that go through all of them
    accuracy   the worst error of every operation over every family

Nothing here imports sumexp: the functions to check are handed in. `python -m oracle` from the folder above
prints the table of accuracy.
"""
