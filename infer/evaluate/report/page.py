"""A report as one HTML file with its pictures inside."""

from collections.abc import Iterable

from dsd_jax.infer.evaluate.report.gallery import cards_of
from dsd_jax.infer.evaluate.report.parts import Report, Section
from dsd_jax.page import Card, Page

__all__ = ["page_of"]

_MOST = 24_000_000  # bytes of pixels of the gallery, about a tenth of them in the file


def page_of(title: str, report: Report, gallery: int) -> Page:
    """Makes the page.

    Args:
        title: Its title.
        report: The report.
        gallery: Largest number of cases that are shown with their images.
    """
    page = Page(title, contents=True)
    for section in report.sections:
        _add(page, section)
    cards, cut = _within(cards_of(report, gallery))
    if cards:
        page.heading("Cases")
        page.text(
            "Those come first about which judges differ most; with one judge, those in which "
            "methods differ most. A click shows the images large."
            + (f" The page has room for {len(cards):,} cases." if cut else "")
        )
        page.cards(cards, wide=True)
    return page


def _add(page: Page, section: Section) -> None:
    page.heading(section.title)
    if section.words:
        page.text(section.words)
    for table in section.tables:
        if table.title:
            page.heading(table.title, 3)
        page.table([table.columns, *table.rows], table.blocks, folded=False)
        for note in table.notes:
            page.text(note, dim=True)
    if section.points:
        page.scatter(section.points, *section.axes)


def _within(cards: Iterable[Card]) -> tuple[list[Card], bool]:
    """The first cards whose pictures fit the page, and whether others were left out."""
    kept: list[Card] = []
    held = 0
    for card in cards:
        held += sum(3 * picture.image.width * picture.image.height for picture in card.pictures)
        if held > _MOST:
            return kept, True
        kept.append(card)
    return kept, False
