//! The page of a command: its help, laid out for man(1), and the JSON that it prints.

use std::io;

use clap::CommandFactory as _;
use clap::builder::Resettable;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::super::Cli;
use super::{Page, results, text};

/// Returns the page of each command, the main one first.
pub(super) fn pages() -> io::Result<Vec<Page>> {
    // The manual is the same however the program was built.
    let mut command = Cli::command().disable_help_subcommand(true).long_version(Resettable::Reset);
    command.build();
    let mut pages = Vec::new();
    add(&command, "volhost", &mut pages)?;
    Ok(pages)
}

fn add(command: &clap::Command, name: &str, pages: &mut Vec<Page>) -> io::Result<()> {
    pages.push(Page { name: name.to_owned(), section: "1", roff: page(command, name)? });
    for below in command.get_subcommands() {
        add(below, &format!("{name}-{}", below.get_name()), pages)?;
    }
    Ok(())
}

fn page(command: &clap::Command, name: &str) -> io::Result<Vec<u8>> {
    let page = Man::new(command.clone())
        .title(name.to_uppercase())
        .date(text::NO_DATE)
        .source(concat!("volhost ", env!("CARGO_PKG_VERSION")))
        .manual("volhost");
    let mut roff = Vec::new();
    page.render_title(&mut roff)?;
    page.render_name_section(&mut roff)?;
    page.render_synopsis_section(&mut roff)?;
    page.render_description_section(&mut roff)?;
    page.render_options_section(&mut roff)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut roff)?;
    }
    json(name, &mut roff)?;
    if let Some(examples) = command.get_after_help() {
        let examples = examples.to_string();
        let (examples, codes) = examples.split_once("\n\nExit codes: ").unwrap_or((&examples, ""));
        verbatim("EXAMPLES", examples, &mut roff)?;
        if !codes.is_empty() {
            verbatim("EXIT STATUS", codes, &mut roff)?;
        }
    }
    if name == "volhost" {
        text::see_also(&["volhost.json(5)", "backends.json(5)"], &mut roff)?;
    }
    Ok(roff)
}

/// Writes the section on the JSON that the command prints with `--json`, if it prints any.
fn json(name: &str, page: &mut Vec<u8>) -> io::Result<()> {
    let command = name.replace('-', " ");
    let mut roff = Roff::default();
    for result in results::TABLE {
        for invocation in result.of {
            let called = format!("volhost {invocation}");
            let rest = called.strip_prefix(&command);
            if name != "volhost" && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(" -")) {
                roff.control("TP", []).text(text::inline(&format!("`{called} --json`")));
                roff.text(text::inline(&format!("Prints {}.", result.prints)));
                if !result.meaning.is_empty() {
                    roff.control("IP", []).text(text::inline(&text::sentence(result.meaning)));
                }
            }
        }
    }
    if roff == Roff::default() {
        return Ok(());
    }
    Roff::default().control("SH", ["JSON"]).to_writer(page)?;
    roff.to_writer(page)
}

/// Writes a section whose lines are kept: examples are tables, and filled text would join their lines.
fn verbatim(heading: &str, text: &str, page: &mut Vec<u8>) -> io::Result<()> {
    let mut roff = Roff::default();
    roff.control("SH", [heading]).control("nf", []);
    for line in text.strip_prefix("Examples:\n").unwrap_or(text).lines() {
        match line {
            "" => roff.control("sp", []),
            line => roff.text([roman(line)]),
        };
    }
    roff.control("fi", []).to_writer(page)
}
