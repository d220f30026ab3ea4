"""The asking half: a session, requests, pages and the five operations."""
