//! Tables as docker prints them: a header in capitals, aligned columns, no borders.
//!
//! On a terminal a table fits its width; in a pipe every row is one line of any length, so that it can be cut
//! and searched. No cell can move the cursor or break a line.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use humansize::{BINARY, format_size};

use crate::error::is_unsafe_to_show;

/// A table under construction.
pub(super) struct Listing(Table);

impl Listing {
    /// Returns a table without rows.
    pub(super) fn new<const N: usize>(header: [&str; N]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(header);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        Self(table)
    }

    /// Aligns a column to the right, for numbers.
    pub(super) fn right(mut self, column: usize) -> Self {
        if let Some(column) = self.0.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        self
    }

    /// Adds a row.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.add_row(cells.map(|cell| printable(&cell)));
    }

    /// Returns the table's text, with a newline at its end; `width` is the terminal's.
    pub(super) fn render(mut self, width: Option<u16>) -> String {
        match width {
            Some(width) => {
                self.0.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
            }
            None => {
                self.0.set_content_arrangement(ContentArrangement::Disabled);
            }
        }
        // The commands choose the styles; the library must not detect the terminal.
        self.0.force_no_tty();
        self.0.trim_fmt() + "\n"
    }
}

/// Returns the width of the terminal on the standard output; `None` if it is not a terminal.
pub(super) fn terminal_width() -> Option<u16> {
    Table::new().width().filter(|width| *width > 0)
}

/// Returns `text` without characters that would break a line or control the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if is_unsafe_to_show(c) { ' ' } else { c }).collect()
}

/// Returns a size for people, or a dash if it is not known.
pub(super) fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".into(), |bytes| format_size(bytes, BINARY.decimal_places(1)))
}

/// Returns `yes` or an empty text: in a column of mostly `no` the few that matter would be hard to see.
pub(super) fn mark(set: bool) -> String {
    if set { "yes".into() } else { String::new() }
}

/// Returns a text, or a dash if there is none.
pub(super) fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Listing {
        let mut listing = Listing::new(["NAME", "SIZE", "REASON"]).right(1);
        listing.row(["db".into(), size(Some(1536)), "a reason\nof two lines, which is rather long".into()]);
        listing.row(["a-longer-name".into(), size(None), String::new()]);
        listing
    }

    #[test]
    fn a_piped_table_has_one_line_for_each_row() {
        assert_eq!(
            sample().render(None),
            "NAME              SIZE  REASON\n\
             db             1.5 KiB  a reason of two lines, which is rather long\n\
             a-longer-name        -\n"
        );
    }

    #[test]
    fn a_table_fits_its_terminal() {
        let text = sample().render(Some(40));
        assert!(text.lines().all(|line| line.chars().count() <= 40), "{text}");
        assert!(text.lines().count() > 3, "the reason was cut instead of wrapped:\n{text}");
    }

    #[test]
    fn an_empty_table_is_its_header() {
        assert_eq!(Listing::new(["NAME", "STATE"]).render(None), "NAME  STATE\n");
    }

    #[test]
    fn no_cell_speaks_to_the_terminal() {
        assert_eq!(printable("a\x1b[31mb\tc\r\n\u{9b}\u{202e}"), "a [31mb c    ");
    }
}
