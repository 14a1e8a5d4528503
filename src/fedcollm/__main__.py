"""Run the command line as `python -m fedcollm`."""

from fedcollm.cli.app import main

main()
