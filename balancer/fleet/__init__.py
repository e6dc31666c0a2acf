"""The one mutable store: instances, their runners and the leases out on them."""
