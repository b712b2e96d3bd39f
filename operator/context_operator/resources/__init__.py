"""One builder for each Kubernetes object that a cluster consists of.

Pure: a builder gets the custom resource and what was decided, and gives the object as JSON. It knows no client, clock or randomness.
"""
