"""The speed of a GPU and what it computes wrongly: `python -m benchmarks.gpu --out DIR`; see benchmarks/GPU.md.

A part is a module with `cases(tiny)`, a list of plain dicts:

    part, title     how a case is shown
    run             "MODULE:FUNCTION": FUNCTION(case) yields its records, each a dict that JSON can hold
    needs           paths relative to the repository without which the case is skipped; optional

Everything else in a case is its own. Every case runs in a process of its own; its records are lines of
`DIR/results.jsonl`. With `tiny` a case takes seconds on a CPU, on tiny random networks.
"""
