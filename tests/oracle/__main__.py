"""Prints the table of accuracy: python -m oracle, from tests/."""

import sumexp

from . import accuracy

print(accuracy.markdown(accuracy.table(sumexp)))
