"""One file a layout: exported lists as the peers' own loaders read them.

Not here: reading (`readers`); what is exported (`pipeline/interchange`).
"""
