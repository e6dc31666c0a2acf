"""All rows, in order of their numbers."""

from tests.hostile.rows import Row
from tests.hostile.rows_bodies import BODIES
from tests.hostile.rows_framing import FRAMING
from tests.hostile.rows_heads import HEADS
from tests.hostile.rows_paths import PATHS

TABLE: tuple[Row, ...] = tuple(sorted((*FRAMING, *HEADS, *PATHS, *BODIES), key=lambda row: row.number))
