"""See `benchmarks.cli`. Processes that are started import this file, so it imports nothing for them."""

if __name__ == "__main__":
    from benchmarks.cli import app

    app()
