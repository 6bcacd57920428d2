"""What was built and what was chosen: show_config, and the number of threads."""

import os
import platform
import sys

import numpy as np

from . import _core
from ._scalars import integer


def get_num_threads():
    """The number of threads a call may use: set_num_threads, else SUMEXP_NUM_THREADS, else the usable CPUs.

    Those are the CPUs of the process's affinity, or fewer where a container's quota of time is worth fewer (control groups
    v1 and v2, rounded up).
    """
    return _core.get_num_threads()


def set_num_threads(n):
    """Sets the number of threads a call may use, n >= 1, for the whole process. Results do not depend on it."""
    _core.set_num_threads(integer("set_num_threads", "n", n, "an int from 1 below 2**31", 1, 2**31 - 1))


def show_config(mode="stdout"):
    """Prints what was built and what was chosen at run time; with mode="dicts" returns it instead.

    A build with CUDA kernels asks the driver for its devices here, and a process that has done so cannot use them in
    children that it forks.
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"show_config: mode is {mode!r}, accepted: 'stdout', 'dicts'")
    core = _core.build_info()
    config = {
        "sumexp": {"version": core["version"], "location": os.path.dirname(__file__)},
        "build": {
            "compiler": core["compiler"],
            "build type": core["build_type"],
            "pybind11": core["pybind11"],
            "instruction sets": core["compiled_isas"],
            "cuda": core["cuda"] or False,
        },
        "run time": {
            "instruction set": core["isa"],
            "usable here": core["usable_isas"],
            "threads": core["num_threads"],
            "stream bytes": core["stream_bytes"],
            "cuda devices": core["cuda_devices"],
            "cuda problem": core["cuda_problem"] or False,
            "SUMEXP_ISA": os.environ.get("SUMEXP_ISA"),
            "SUMEXP_NUM_THREADS": os.environ.get("SUMEXP_NUM_THREADS"),
            "SUMEXP_STREAM_BYTES": os.environ.get("SUMEXP_STREAM_BYTES"),
        },
        "around it": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": getattr(sys.modules.get("torch"), "__version__", "not imported"),
            "machine": f"{platform.system()} {platform.machine()}",
        },
    }
    if mode == "dicts":
        return config
    for section, entries in config.items():
        print(section)
        for key, value in entries.items():
            print(f"  {key:<20} {'not set' if value is None else value}")


def register_threadpoolctl():
    """Makes threadpoolctl's limits and listings include this library's threads, where it is installed."""
    try:
        import threadpoolctl
    except ImportError:
        return

    class SumexpController(threadpoolctl.LibController):
        user_api = "sumexp"
        internal_api = "sumexp"
        filename_prefixes = ("_core",)
        check_symbols = ("sumexp_core_num_threads",)

        def get_num_threads(self):
            return _core.get_num_threads()

        def set_num_threads(self, num_threads):
            _core.set_num_threads(num_threads)

        def get_version(self):
            return _core.__version__

        def set_additional_attributes(self):
            self.instruction_set = _core.get_isa()

    threadpoolctl.register(SumexpController)
