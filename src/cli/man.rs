//! `man`: the manual, one page for each command, made from the same words as the help.

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::builder::Resettable;
use clap::{Args, CommandFactory as _};
use clap_mangen::Man as Page;
use clap_mangen::roff::{Roff, roman};

use super::{Cli, Error, Shell};

/// Print the manual page, or write the pages of all commands
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  volhost man | man -l -                   Read the main page
  volhost man --out /usr/local/share/man/man1
                                           Install all: volhost.1, volhost-volume-ls.1, …
  man volhost-volume-ls                    Then read one of them")]
pub(super) struct Man {
    /// Write one page for each command into DIR, which is made if it is missing
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Why the pages were not all written.
#[derive(Debug, thiserror::Error)]
#[error("the manual cannot be written to {path:?}")]
pub(super) struct ManError {
    path: PathBuf,
    source: io::Error,
}

pub(super) fn run(args: &Man, shell: &mut Shell<'_>) -> Result<(), Error> {
    let pages = pages().map_err(Error::Output)?;
    let Some(dir) = &args.out else {
        let (_, main) = pages.into_iter().next().unwrap_or_default();
        return shell.out.write_all(&main).map_err(Error::Output);
    };
    let written = write(dir, &pages)?;
    if shell.global.json {
        return shell.json(&written);
    }
    shell.line(&format!("{}: {} pages", dir.display(), written.len()))
}

fn write(dir: &Path, pages: &[(String, Vec<u8>)]) -> Result<Vec<PathBuf>, ManError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| ManError { path, source }
    };
    fs::create_dir_all(dir).map_err(failed(dir))?;
    let write = |(file, page): &(String, Vec<u8>)| {
        let path = dir.join(file);
        fs::write(&path, page).map_err(failed(&path))?;
        Ok(path)
    };
    pages.iter().map(write).collect()
}

/// Every page with the name of its file, the main one first.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    // The manual is the same, however the program was built.
    let mut command = Cli::command().disable_help_subcommand(true).long_version(Resettable::Reset);
    command.build();
    let mut pages = Vec::new();
    add(&command, "volhost", &mut pages)?;
    Ok(pages)
}

fn add(command: &clap::Command, name: &str, pages: &mut Vec<(String, Vec<u8>)>) -> io::Result<()> {
    pages.push((format!("{name}.1"), page(command, name)?));
    for below in command.get_subcommands() {
        add(below, &format!("{name}-{}", below.get_name()), pages)?;
    }
    Ok(())
}

fn page(command: &clap::Command, name: &str) -> io::Result<Vec<u8>> {
    let page = Page::new(command.clone())
        .title(name.to_uppercase())
        .source(concat!("volhost ", env!("CARGO_PKG_VERSION")))
        .manual("volhost");
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut text)?;
    }
    if let Some(examples) = command.get_after_help() {
        let examples = examples.to_string();
        let (examples, codes) = examples.split_once("\n\nExit codes: ").unwrap_or((&examples, ""));
        verbatim("EXAMPLES", examples, &mut text)?;
        if !codes.is_empty() {
            verbatim("EXIT STATUS", codes, &mut text)?;
        }
    }
    Ok(text)
}

/// A section whose lines stay as they are: examples are tables, which filled text would run together.
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

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_main_page_is_as_its_golden_file() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/man/volhost.1");
        let (name, page) = pages().unwrap().swap_remove(0);
        assert_eq!(name, "volhost.1");
        let page = String::from_utf8(page).unwrap();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(golden.parent().unwrap()).unwrap();
            fs::write(&golden, &page).unwrap();
        }
        let told = "the page differs: look at it, then UPDATE_GOLDEN=1 cargo test --lib cli::";
        assert_eq!(page, fs::read_to_string(&golden).unwrap_or_default(), "{told}");
    }

    #[test]
    fn each_command_has_a_page_which_says_what_it_is_for() {
        let pages = pages().unwrap();
        let names: Vec<_> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for name in ["volhost.1", "volhost-serve.1", "volhost-volume.1", "volhost-volume-ls.1"] {
            assert!(names.contains(&name), "{names:?}");
        }
        for (name, page) in &pages {
            let page = String::from_utf8_lossy(page);
            let title = name.trim_end_matches(".1");
            let begin = format!(".TH {} 1 ", title.to_uppercase());
            assert!(page.contains(&begin), "{name}: {page}");
            let (_, after) = page.split_once(".SH NAME\n").unwrap();
            let line = after.lines().next().unwrap().replace("\\-", "-");
            assert!(line.starts_with(&format!("{title} - ")), "{name}: {line}");
        }
    }

    #[test]
    fn groff_has_nothing_to_warn_of() {
        for (name, page) in pages().unwrap() {
            let groff = Command::new("groff")
                .args(["-man", "-Tutf8", "-Kutf8", "-ww", "-z"])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn();
            let mut groff = match groff {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                started => started.unwrap(),
            };
            groff.stdin.take().unwrap().write_all(&page).unwrap();
            let done = groff.wait_with_output().unwrap();
            assert_eq!(String::from_utf8_lossy(&done.stderr), "", "{name}");
            assert!(done.status.success(), "{name}");
        }
    }

    #[test]
    fn pages_are_written_into_a_directory_that_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("share/man/man1");
        let pages = pages().unwrap();
        let written = write(&into, &pages).unwrap();
        assert_eq!(written.len(), pages.len());
        for (path, (_, page)) in written.iter().zip(&pages) {
            assert_eq!(fs::read(path).unwrap(), *page);
        }
        fs::write(dir.path().join("file"), "").unwrap();
        let refused = write(&dir.path().join("file"), &pages).unwrap_err();
        assert!(refused.to_string().contains("/file\""), "{refused}");
    }
}
