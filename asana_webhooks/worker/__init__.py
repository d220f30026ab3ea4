"""The worker: passes stored deliveries to your handler, with leases, retries and dead letters.

.. include:: README.md
"""
