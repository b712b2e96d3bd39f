"""What cares for a cluster from outside: `placement.py` decides where replicas and leaders should be (pure).

It never imports `context_node`, nor the other way round: they share the admin API.
"""
