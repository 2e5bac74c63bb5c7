"""Run the command line: ``python -m dwcp_fast``."""

from dwcp_fast.cli import main

if __name__ == "__main__":
    main()
