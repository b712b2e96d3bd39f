"""`python -m context_node` is the command `contextstore`."""

from context_node.cli import main

if __name__ == "__main__":
    main(prog_name="contextstore")
