"""Receiving from Asana: signatures, handshakes, deliveries, and the adapters for aiohttp and ASGI.

.. include:: README.md
"""
