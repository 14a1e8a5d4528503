"""fedcollm beside the libraries that a user would otherwise take, on the same work: `python -m benchmarks.speed`.

A row (B1 to B6) is a module with `CASES`, a list of plain dicts, each a pair of sides:

    row, title, peer_name      how it is shown; the title is its key in benchmarks/results/ROW.json
    ours, peer                 "MODULE:FUNCTION": FUNCTION(case) loads and returns repeat() -> {"seconds": ..., figures}
    same                       "MODULE:FUNCTION": FUNCTION(ours, peer) says how closely both sides agree, or raises
    target, memory_target      such as "≥ 4 ×" (peer's seconds / ours) and "≤ 0.6 ×" (our peak / the peer's); optional
    form                       "short": in both forms; "long": with --long only
    needs                      paths relative to the repository without which the case is skipped; optional
    separate                   two loaded processes don't fit in memory: one after the other; optional
    cold                       no untimed repetition first; optional
    repetitions                at most so many; optional
    threads                    of each side, such as "1"; optional
    dtype                      with "flops" among our figures: the matrix-product rate to compare with; optional

Everything else in a case is its own. The figures of both sides go to `same` for every pair of repetitions; those named
`*seconds` are kept as medians. A side that starts processes of its own puts their "peak_bytes" among its figures; else
it is the worker's own.
"""
