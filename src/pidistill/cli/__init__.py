"""The command line is called as `pidistill`, or as `python -m pidistill.cli`."""

from pidistill.cli.main import main as main
