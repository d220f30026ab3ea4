"""What this package costs, compared with what one would pick instead.

``python -m benchmarks`` runs everything and says how. One benchmark per file, one function per competitor:

- `harness` takes the competitors of a case in turns, sees that all did the same work, and compares them;
- `processes` gives each a process of its own, so that none pays for what another one has imported;
- `report` prints tables and writes JSON, and `charts` draws some of that.
"""
