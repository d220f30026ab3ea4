"""Programs that receive deliveries, each of which imports nothing of the others.

All of them check the signature over the raw body. Only ours store what they get.
"""
