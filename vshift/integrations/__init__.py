"""Callbacks for other people's trainers, around `VarianceProbe`.

    from vshift.integrations.lightning import VarianceCallback
    from vshift.integrations.huggingface import VarianceCallback

Each imports its library, which vshift does not install.
"""
