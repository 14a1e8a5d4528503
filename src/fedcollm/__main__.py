"""`python -m fedcollm`."""

from fedcollm.cli.app import main

main()
