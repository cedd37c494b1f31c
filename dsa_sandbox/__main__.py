"""`python -m dsa_sandbox` is the command line."""

from dsa_sandbox.cli.main import main

main()
