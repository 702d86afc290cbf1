"""`python -m polydistill`."""

from polydistill.cli import main

main()
