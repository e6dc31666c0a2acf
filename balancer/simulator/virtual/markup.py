"""Elements of HTML and SVG, escaped by the standard library."""

from xml.etree.ElementTree import Element, tostring

Content = Element | str


def element(tag: str, *content: Content, **attributes: str | float) -> Element:
    """An element with its content in order. `class_` is `class`, and other underscores are hyphens; numbers
    are written with at most two digits behind the point."""
    names = {name.rstrip("_").replace("_", "-"): _text(value) for name, value in attributes.items()}
    made = Element(tag, names)
    for each in content:
        if isinstance(each, Element):
            made.append(each)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + each
        else:
            made.text = (made.text or "") + each
    return made


def page(root: Element) -> str:
    """A whole HTML document."""
    return f"<!doctype html>\n{tostring(root, encoding='unicode', method='html')}\n"


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
