"""How much of a device's time each request has: all that run on it at once share it evenly."""


class DeviceTime:
    """A clock that stands while nothing runs, and goes the slower the more do: what it shows at a request's
    end less what it showed at its beginning, in seconds, is that request's part of the device."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._at = 0.0

    def pass_to(self, now: float, *, running: int) -> None:
        """Until `now` (monotonic seconds) so many requests ran."""
        if running:
            self.seconds += (now - self._at) / running
        self._at = now
