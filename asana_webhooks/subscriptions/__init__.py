"""Subscriptions: creating webhooks with their handshakes, and deleting orphaned ones.

.. include:: README.md
"""
