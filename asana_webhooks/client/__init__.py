"""The client of Asana's API: a session, requests, pages and the operations.

.. include:: README.md
"""
