"""`python -m torch_qsgd`: the command line."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it with code 130, while it is still being imported too."""
    try:
        from torch_qsgd.cli import app

        app(prog_name="torch-qsgd")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
