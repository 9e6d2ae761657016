"""`python -m pidistill.cli` serves launchers, which take modules."""

from pidistill.cli.main import main

main()
