"""The client of Asana's API: a session, requests, pages and the five operations.

.. include:: README.md
"""
