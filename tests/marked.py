"""Reads marks out of files by the rules of each format, with no code that writes them."""

import re
import struct
import zlib
from xml.etree import ElementTree

__all__ = ["TYPE", "png_chunks", "source_types"]

TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, place = [], 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, content = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        assert struct.unpack(">I", data[place + 8 + length :][:4]) == (zlib.crc32(kind + content),)
        chunks.append((kind, content))
        place += length + 12
    return chunks


def packets(data: bytes) -> list[bytes]:
    """All XMP packets of a file, found by the rules of its format."""
    if data.startswith(b"\x89PNG"):
        start = b"XML:com.adobe.xmp\0\0\0\0\0"
        texts = [content for kind, content in png_chunks(data) if kind == b"iTXt"]
        return [text.removeprefix(start) for text in texts if text.startswith(start)]
    found = []
    if data.startswith(b"RIFF"):
        place = 12
        while place < len(data):
            kind, (length,) = data[place : place + 4], struct.unpack("<I", data[place + 4 :][:4])
            found += [data[place + 8 : place + 8 + length]] if kind == b"XMP " else []
            place += 8 + length + length % 2
        return found
    place, start = 2, b"http://ns.adobe.com/xap/1.0/\0"
    while data[place + 1] != 0xDA:  # the pixels
        (length,) = struct.unpack(">H", data[place + 2 : place + 4])
        content = data[place + 4 : place + 2 + length]
        if data[place + 1] == 0xE1 and content.startswith(start):
            found.append(content.removeprefix(start))
        place += 2 + length
    return found


def source_types(data: bytes) -> list[str | None]:
    """Digital source type of every XMP packet."""
    name = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    what = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
    return [
        description.get(name)
        for packet in packets(data)
        for description in ElementTree.fromstring(re.sub(rb"<\?xpacket[^>]*\?>", b"", packet)).iter(
            what
        )
    ]
