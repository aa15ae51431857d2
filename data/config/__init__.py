"""Settings: sections, fields that enter fingerprints, YAML and overrides.

Not here: what a setting does; that is with the stage, model or loss that reads it.
"""
