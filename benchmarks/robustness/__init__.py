"""What bad data and hostile clients cost, and what defences win back: `python -m benchmarks.robustness`.

    python -m benchmarks.robustness --list
    python -m benchmarks.robustness --rows 'clean-*,labels-random-60-1of4' --defences none,median --seeds 0,1,2

A row (`rows.py`) says which of how many clients are bad, and how: in their data (`data_attacks.py`) or in what they
send (`update_attacks.py`). A defence (`defences.py`) is a set of keys of the configuration, as `--set` takes them. Each
finished run is one JSON file, ROW/DEFENCE-SEED.json, and is not done again; an interrupted one goes on where it was.
`robustness.json` has the means over seeds, and `robustness.html` a plot of each row.

Attacks live here and not in the product: they are clients of another class, which `Inputs.stand_in` puts in the place
of the product's own.
"""
