"""`python -m cbin_nn`: the command line, where `cbin-nn` is not on the path."""

from .cli import main

main(prog_name="cbin-nn")
