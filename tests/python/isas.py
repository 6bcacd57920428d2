"""The instruction sets that this build and CPU have, the kernels for any CPU first."""

from sumexp import _core

ISAS = ["portable", *_core.build_info()["usable_isas"].split(",")]
