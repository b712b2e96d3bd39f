"""The one refusal that nodes give each other and clients never see."""

from context_node.contexts.refusals import Unavailable


class NotHere(Unavailable):
    """The node that was asked does not lead the shard (now): nothing was done, and another may be asked at once. `details["leader"]`: the
    number of the node that does, as far as it is known there; 0 if it is not."""

    code = "not_here"
