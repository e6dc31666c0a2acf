"""Bodies that are not plain JSON: compressed ones and forms."""

import pytest
import zstandard

from balancer.errors import BodyTooLarge, MalformedRequest
from balancer.protocol.encoding import inflate_zstd, multipart_field

FORM = "multipart/form-data; boundary=bnd"


def part(disposition: str, value: bytes = b"value", more: str = "") -> bytes:
    return (
        b"--bnd\r\nContent-Disposition: form-data; "
        + disposition.encode()
        + b"\r\n"
        + more.encode()
        + b"\r\n"
        + value
        + b"\r\n"
    )


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--bnd--\r\n"


@pytest.mark.parametrize("size", [0, 1, 65_536, 300_000])
def test_what_was_compressed_comes_out_as_it_was(size: int) -> None:
    plain = bytes(range(256)) * (size // 256) + b"x" * (size % 256)

    assert plain == inflate_zstd(zstandard.ZstdCompressor().compress(plain))


def test_a_body_of_several_frames_is_their_sum() -> None:
    compress = zstandard.ZstdCompressor().compress

    assert inflate_zstd(compress(b"ab") + compress(b"cd")) == b"abcd"


def test_inflating_stops_at_the_limit_and_not_before_it() -> None:
    squeezed = zstandard.ZstdCompressor().compress(b"x" * 1000)

    assert inflate_zstd(squeezed, limit_bytes=1000) == b"x" * 1000
    with pytest.raises(BodyTooLarge):
        inflate_zstd(squeezed, limit_bytes=999)


def test_what_is_not_zstd_is_malformed() -> None:
    with pytest.raises(MalformedRequest, match="zstd"):
        inflate_zstd(b'{"model":"x"}')


@pytest.mark.parametrize(
    "content_type",
    [FORM, 'multipart/form-data; boundary="bnd"', "multipart/form-data; Boundary=bnd; charset=utf-8"],
)
def test_a_field_is_found_by_its_name(content_type: str) -> None:
    body = form(part('name="other"', b"1"), part('name="model"', b"whisper"))

    assert multipart_field(body, content_type, "model") == "whisper"


@pytest.mark.parametrize(
    "disposition",
    [
        'name="model"',
        "name=model",
        'NAME="model"',
        'name = "model" ;',
        'name="model"; filename=""',
    ],
)
def test_a_name_is_found_however_it_is_written(disposition: str) -> None:
    assert multipart_field(form(part(disposition)), FORM, "model") == "value"


@pytest.mark.parametrize(
    ("disposition", "more"),
    [
        ('name="file"; filename="model"', ""),
        ('filename="model"; name="file"', ""),
        ('name="model"; filename="x"', ""),
        ("filename*=UTF-8''x; name=model", ""),
        ('name="model"; name="model"', ""),
        ('name="model"; and more', ""),
        ('name="file"; filename="a; name=\\"model\\""', ""),
        ('name="file"; filename="; name=model; "', ""),
        ('name="models"', ""),
        ('name="mod"', ""),
        ('name="file"', 'Content-Type: audio/wav; name="model"\r\n'),
    ],
)
def test_what_only_looks_like_the_field_is_not_the_field(disposition: str, more: str) -> None:
    body = form(part(disposition, b"a recording", more), part('name="model"', b"whisper"))

    assert multipart_field(body, FORM, "model") == "whisper"


def test_the_first_of_two_fields_counts() -> None:
    assert multipart_field(form(part('name="model"', b"a"), part('name="model"', b"b")), FORM, "model") == "a"


def test_a_file_that_contains_a_form_is_not_read_as_one() -> None:
    inner = b'--in\r\nContent-Disposition: form-data; name="model"\r\n\r\nother\r\n--in--\r\n'

    assert (
        multipart_field(form(part('name="file"', inner), part('name="model"', b"whisper")), FORM, "model")
        == "whisper"
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        form(),
        form(part('name="other"')),
        b'--bnd\r\nContent-Disposition: form-data; name="model"\r\n\r\ncut off',
    ],
)
def test_a_form_without_the_field_has_none(body: bytes) -> None:
    assert multipart_field(body, FORM, "model") is None


@pytest.mark.parametrize("value", [b"x" * 1025, b"\xff"])
def test_a_field_that_is_no_short_text_is_malformed(value: bytes) -> None:
    with pytest.raises(MalformedRequest):
        multipart_field(form(part('name="model"', value)), FORM, "model")


def test_a_form_without_a_boundary_is_malformed() -> None:
    with pytest.raises(MalformedRequest, match="boundary"):
        multipart_field(form(), "multipart/form-data", "model")


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=a; boundary=bnd",
        "multipart/form-data; boundary=bnd; and more",
        "multipart/form-data; xboundary=bnd",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=" + "b" * 71,
    ],
)
def test_a_boundary_that_is_not_clear_is_none(content_type: str) -> None:
    with pytest.raises(MalformedRequest, match="boundary"):
        multipart_field(form(part('name="model"')), content_type, "model")


def test_a_boundary_that_another_one_begins_with_does_not_end_a_part() -> None:
    inner = b'bnd\r\n--bnd-\r\nContent-Disposition: form-data; name="model"\r\n\r\nother'
    body = form(part('name="file"', inner), part('name="model"', b"whisper"))

    assert multipart_field(body, FORM, "model") == "whisper"


def test_what_stands_before_and_behind_a_form_is_no_part_of_it() -> None:
    other = part('name="model"', b"other")
    body = b"--bndx\r\n" + other[7:] + form(part('name="x"')) + other

    assert multipart_field(body, FORM, "model") is None


@pytest.mark.parametrize(
    "body",
    [
        form(part('name="model"', more="Content-Transfer-Encoding: Quoted-Printable\r\n")),
        form(part('name="model"', more=" folded\r\n")),
        form(part('name="x"\rContent-Disposition: form-data; name="model"')),
        form(part("name*=utf-8''model"), part('name="model"')),
        form(part('name="model"')).replace(b"\r\n", b"\n"),
        form(part('name="x"')).replace(b"bnd--", b"bnd--x"),
    ],
)
def test_a_form_that_could_be_read_in_another_way_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        multipart_field(body, FORM, "model")


def test_a_form_of_a_million_parts_is_malformed_rather_than_searched() -> None:
    body = b"--bnd\r\n" + b"\r\n\r\n--bnd\r\n" * 1_000_000 + form(part('name="model"'))

    with pytest.raises(MalformedRequest, match="parts"):
        multipart_field(body, FORM, "model")
