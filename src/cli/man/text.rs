//! Text for manual pages, in the notation of the documents: text between backquotes is bold.

use std::io;

use clap_mangen::roff::{Inline, Roff, bold, roman};

/// The date of a page without one: an empty word would vanish from the title line.
pub(super) const NO_DATE: &str = " ";

/// Returns a line of text.
pub(super) fn inline(text: &str) -> Vec<Inline> {
    let part = |(index, part): (usize, &str)| if index % 2 == 1 { bold(part) } else { roman(part) };
    text.split('`').enumerate().filter(|(_, part)| !part.is_empty()).map(part).collect()
}

/// Returns the text as a sentence: with a capital, unless a name begins it, and a full stop.
pub(super) fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_uppercase().to_string()).unwrap_or_default();
    let end = if text.ends_with('.') { "" } else { "." };
    format!("{first}{}{end}", letters.as_str())
}

/// Writes the section that names other pages.
pub(super) fn see_also(pages: &[&str], page: &mut Vec<u8>) -> io::Result<()> {
    Roff::default().control("SH", ["SEE ALSO"]).text([roman(pages.join(", "))]).to_writer(page)
}
