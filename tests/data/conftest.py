import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


@pytest.fixture
def png():
    """png(colour, side) -> the bytes of a plain picture."""

    def make(colour, side=8) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (side, side), colour).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture
def write_parquet(tmp_path):
    """write_parquet(images, texts, name, group) -> path of a file with image{bytes, path} and text."""

    def write(images, texts, name="data.parquet", group=3, columns=("image", "text")):
        rows = [{"bytes": data, "path": None} if data is None or isinstance(data, bytes) else data for data in images]
        path = tmp_path / name
        pq.write_table(pa.table({columns[0]: rows, columns[1]: texts}), path, row_group_size=group)
        return path

    return write
