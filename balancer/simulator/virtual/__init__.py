"""The fleet in virtual time: the real dispatch, admission, scheduling and loads over simulated instances, on
a clock that jumps from event to event.

A run is a pure function of its scenario, its strategy and its seed. Nothing here is imported by the product.
"""
