"""`python -m fedcollm`."""

from fedcollm.cli import main

main()
