"""The command line: `pidistill`, and `python -m pidistill.cli`."""

from pidistill.cli.main import main as main
