"""`python -m gentk`, the same as `gentk`."""

from gentk.cli.app import app

if __name__ == "__main__":
    app(prog_name="gentk")
