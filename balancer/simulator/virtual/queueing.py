"""What queueing theory says of waiting: closed formulas to hold simulated waiting times against.

Arrivals are Poisson unless told otherwise, the queue is unbounded and first come, first served; `servers`
are slots here. A squared coefficient of variation is variance over squared mean: 0 for a constant, 1 for an
exponential distribution. All results are steady state: infinite where the offered load is not below the
servers.
"""

from math import inf


def erlang_c(servers: int, offered: float) -> float:
    """The probability that an arrival has to wait; `offered` is arrivals per second times service seconds.

    By the recursion of Erlang's B formula, which has no large numbers in it.
    Source: A. K. Erlang, 1917; Kleinrock, Queueing Systems I, 1975, 3.5.
    Raises ValueError for no servers or a negative load.
    """
    if servers < 1 or offered < 0:
        raise ValueError(f"no waiting with {servers} servers and a load of {offered}")
    if offered >= servers:
        return 1.0
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


def mmk_wait_seconds(arrivals_per_second: float, service_seconds: float, servers: int) -> float:
    """Mean wait before service of M/M/k, exponential service times. Source and errors: as `erlang_c`."""
    offered = arrivals_per_second * service_seconds
    waits = erlang_c(servers, offered)
    return waits * service_seconds / (servers - offered) if offered < servers else inf


def mg1_wait_seconds(arrivals_per_second: float, service_seconds: float, service_scv: float) -> float:
    """Mean wait before service of M/G/1, exact for any distribution of service times with that squared
    coefficient of variation. Source: Pollaczek, 1930; Khinchine, 1932; Kleinrock, as above, 5.6."""
    return (1 + service_scv) / 2 * mmk_wait_seconds(arrivals_per_second, service_seconds, 1)


def mgk_wait_seconds(
    arrivals_per_second: float,
    service_seconds: float,
    servers: int,
    *,
    service_scv: float,
    arrival_scv: float = 1.0,
) -> float:
    """Mean wait before service of GI/G/k, of M/G/k with the default. An approximation, exact for M/M/k and
    M/G/1; elsewhere it errs by some per cent at high loads and by more at low ones.
    Source: Allen and Cunneen; Allen, Probability, Statistics and Queueing Theory, 2nd ed., 1990."""
    exponential = mmk_wait_seconds(arrivals_per_second, service_seconds, servers)
    return (arrival_scv + service_scv) / 2 * exponential if exponential < inf else inf
