"""We call Asana: a session, requests, pages and the five operations."""
