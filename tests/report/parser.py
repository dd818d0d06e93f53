"""A parser of pages for tests."""

import base64
import io
from html.parser import HTMLParser

from PIL import Image


class Page(HTMLParser):
    """The tags of a page with their attributes, its text by element, and its images."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.images, self.open = [], {}, [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "img":
            head, data = attributes["src"].split(",")
            assert head.startswith("data:image/") and head.endswith(";base64")
            self.images.append(Image.open(io.BytesIO(base64.b64decode(data))))
        if tag not in ("area", "img", "meta", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data)
