"""`python -m pidistill.cli`: for launchers, which take modules."""

from pidistill.cli.main import main

main()
