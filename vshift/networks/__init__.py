"""Networks from a config: `build.build` makes one; `summary` describes it.

Nothing is imported here: audits of other people's models use the layers of `norm` and `noise`
without a config.
"""
