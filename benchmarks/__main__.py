"""See `benchmarks.cli`. Processes that are started import this file, so it imports nothing for them."""

if __name__ == "__main__":
    import sys

    try:
        from benchmarks.cli import app
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is missing; first run: pip install -e '.[bench]'")
    app()
