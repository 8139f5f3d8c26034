"""What a bad network does to the tunnel: every fault against every kind of traffic, with the promise that must hold.

``python -m tests.faults`` runs the long half and prints its outcome as a table; a fast half runs with the other tests.
"""
