"""`python -m balancer` is the command `balancer`."""

from balancer.cli import main

main()
