"""An exchange whose answer is translated as it comes in; for whoever reads it, it is as any other.

The head waits for what the first of the body makes of it: an answer that fails before it has said anything
can so be told with a status, or be asked for elsewhere, as one of Ollama's can.
"""

from collections.abc import Callable

import msgspec

from balancer.errors import BadResponse
from balancer.protocol.translation.served import AnswerTranslation
from balancer.upstream.exchange import Exchange, ResponseHead
from balancer.upstream.stream_memory import StreamMemory

_KEPT = frozenset({"retry-after"})


class TranslatedExchange(Exchange):
    """Between the connection and the exchange that it feeds."""

    def __init__(
        self,
        translation: AnswerTranslation,
        *,
        buffer_bytes: int,
        cancel: Callable[[], None],
        read: Callable[[bool], None],
        memory: StreamMemory,
    ) -> None:
        super().__init__(buffer_bytes=buffer_bytes, cancel=cancel, read=read, memory=memory)
        self._translation = translation
        self._untold: ResponseHead | None = None

    def receive_head(self, head: ResponseHead) -> None:
        self._untold = head
        self._translation.begin(head.status, head.media_type)

    def receive_chunk(self, chunk: bytes) -> None:
        if self._error is not None:
            return
        self._received_at = self._time()  # though nothing may come of it yet
        try:
            told = self._translation.feed(chunk)
        except BadResponse as error:
            self.cancel(error)
            return
        if told:
            self._tell_head()
            super().receive_chunk(told)

    def finish(self) -> None:
        self.end_chunk()
        try:
            told = self._translation.end() if self._error is None else b""
        except BadResponse as error:
            self.cancel(error)
            return
        if self._error is None:
            self._tell_head()
            if told:
                super().receive_chunk(told)
        super().finish()

    def _tell_head(self) -> None:
        head, self._untold = self._untold, None
        if head is None:
            return
        kept = tuple(each for each in head.headers if each[0].lower() in _KEPT)
        media_type = self._translation.media_type
        super().receive_head(
            msgspec.structs.replace(
                head,
                status=self._translation.status,
                headers=(("Content-Type", media_type), *kept),
                media_type=media_type.partition(";")[0],
                content_length=None,
                chunked=True,
            )
        )


def exchange_of(
    translation: AnswerTranslation | None,
    *,
    buffer_bytes: int,
    cancel: Callable[[], None],
    read: Callable[[bool], None],
    memory: StreamMemory,
) -> Exchange:
    """The exchange that a request with this translation needs."""
    if translation is None:
        return Exchange(buffer_bytes=buffer_bytes, cancel=cancel, read=read, memory=memory)
    return TranslatedExchange(translation, buffer_bytes=buffer_bytes, cancel=cancel, read=read, memory=memory)
