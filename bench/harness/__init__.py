"""What bench/cpu.py is made of: this library beside its peers, on the same arrays, in one run.

    cells.py     what is measured: operation, dtype, axis, rows x n, threads; the byte model; the arrays
    peers.py     how each library is called for a cell
    peer_numba.py  the loops of the numba peer
    worker.py    one process with one peer in it, driven over a pipe
    rounds.py    the parent: starts workers, gives each its turn, one at a time
    limits.py    ../limits.cpp compiled for this machine: copy, read, exp-and-add, two reads and a write
    stats.py     medians, spreads, intervals of ratios
    bars.py      the project's speed bars, measured and judged
    accuracy.py  adversarial rows, an oracle, errors in ulp
    tables.py    what is printed, and the tables of the pages
    pictures.py  throughput against n; accuracy against the peers

formulas.py is the table of bench/families.py. bench/gpu.py uses cells, stats and tables too.
"""
