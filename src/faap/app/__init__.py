"""`faap app`: in the browser, what a generator does to a picture, an audit, and runs side by side."""

from faap.app.page import serve as serve
from faap.app.shelf import Shelf as Shelf
