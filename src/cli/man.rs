//! `man`: the manual, generated from the help texts and the tables of fields: one page for each command
//! (section 1) and for each configuration file (section 5).

mod command;
mod file;
mod results;
mod text;

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::Args;

use super::{Error, Shell};

/// Print a manual page, or write the pages of all commands
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  volhost man | man -l -                   Read the main page
  volhost man volume-ls | man -l -         Read the one of a command
  volhost man backends.json | man -l -     Read the one of a configuration file
  volhost man --out /usr/local/share/man/man1
                                           Install those of all commands: volhost.1, volhost-volume-ls.1, …
  volhost man --section 5 --out /usr/local/share/man/man5
                                           Install those of the files: volhost.json.5, backends.json.5
  man volhost-volume-ls                    Then read one of them")]
pub(super) struct Man {
    /// The page's name, such as `volume-ls` or `backends.json`
    #[arg(value_name = "PAGE", default_value = "volhost", hide_default_value = true)]
    page: String,
    /// Write the pages of one section into DIR, which is made if it is missing
    #[arg(long, value_name = "DIR", conflicts_with = "page")]
    out: Option<PathBuf>,
    /// Of which section pages are written: 1 commands, 5 configuration files
    #[arg(long, value_name = "N", default_value = "1", value_parser = ["1", "5"], requires = "out")]
    section: String,
}

/// The error that a page could not be written.
#[derive(Debug, thiserror::Error)]
#[error("the manual cannot be written to {path:?}")]
pub(super) struct ManError {
    path: PathBuf,
    source: io::Error,
}

/// One page of the manual.
struct Page {
    name: String,
    section: &'static str,
    /// The page's source, for man(1).
    roff: Vec<u8>,
}

impl Page {
    fn file_name(&self) -> String {
        format!("{}.{}", self.name, self.section)
    }

    /// Returns true if a user means this page; the user may leave out the program's name.
    fn is_called(&self, name: &str) -> bool {
        self.name == name || self.name.strip_prefix("volhost-") == Some(name) || self.file_name() == name
    }
}

pub(super) fn run(args: &Man, shell: &mut Shell<'_>) -> Result<(), Error> {
    let pages = pages().map_err(Error::Output)?;
    let Some(dir) = &args.out else {
        let page = pages.iter().find(|page| page.is_called(&args.page));
        let page = page.ok_or_else(|| unknown(&args.page, &pages))?;
        return shell.out.write_all(&page.roff).map_err(Error::Output);
    };
    let pages: Vec<_> = pages.into_iter().filter(|page| page.section == args.section).collect();
    let written = write(dir, &pages)?;
    if shell.global.json {
        return shell.json(&written);
    }
    shell.line(&format!("{}: {} pages", dir.display(), written.len()))
}

fn unknown(name: &str, pages: &[Page]) -> Error {
    let short = |page: &Page| page.name.strip_prefix("volhost-").unwrap_or(&page.name).to_owned();
    let names: Vec<_> = pages.iter().map(short).collect();
    let hint = crate::error::nearest(name, names.iter().map(String::as_str))
        .map(|nearest| format!(" (did you mean {nearest:?}?)"));
    Error::Usage(format!("there is no manual page {name:?}{}", hint.unwrap_or_default()))
}

fn write(dir: &Path, pages: &[Page]) -> Result<Vec<PathBuf>, ManError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| ManError { path, source }
    };
    fs::create_dir_all(dir).map_err(failed(dir))?;
    let write = |page: &Page| {
        let path = dir.join(page.file_name());
        fs::write(&path, &page.roff).map_err(failed(&path))?;
        Ok(path)
    };
    pages.iter().map(write).collect()
}

/// Returns every page, the main one first.
fn pages() -> io::Result<Vec<Page>> {
    let mut pages = command::pages()?;
    pages.extend(file::pages()?);
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_main_page_is_as_its_golden_file() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/man/volhost.1");
        let page = pages().unwrap().swap_remove(0);
        assert_eq!(page.file_name(), "volhost.1");
        let page = String::from_utf8(page.roff).unwrap();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(golden.parent().unwrap()).unwrap();
            fs::write(&golden, &page).unwrap();
        }
        let told = "the page differs: look at it, then UPDATE_GOLDEN=1 cargo test --lib cli::";
        assert_eq!(page, fs::read_to_string(&golden).unwrap_or_default(), "{told}");
    }

    #[test]
    fn each_command_and_each_file_has_a_page_which_says_what_it_is_for() {
        let pages = pages().unwrap();
        let names: Vec<_> = pages.iter().map(Page::file_name).collect();
        for name in [
            "volhost.1",
            "volhost-serve.1",
            "volhost-volume.1",
            "volhost-volume-ls.1",
            "backends.json.5",
            "volhost.json.5",
        ] {
            assert!(names.iter().any(|known| known == name), "{names:?}");
        }
        for Page { name, section, roff } in &pages {
            let page = String::from_utf8_lossy(roff);
            let title = name;
            let shown = if *section == "1" { title.to_uppercase() } else { title.clone() };
            let begin = format!(".TH {shown} {section} ");
            assert!(page.contains(&begin), "{name}: {page}");
            let (_, after) = page.split_once(".SH NAME\n").unwrap();
            let line = after.lines().next().unwrap().replace("\\-", "-");
            assert!(line.starts_with(&format!("{title} - ")), "{name}: {line}");
        }
    }

    #[test]
    fn groff_has_nothing_to_warn_of() {
        for Page { name, section: _, roff: page } in pages().unwrap() {
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
        for (path, page) in written.iter().zip(&pages) {
            assert_eq!(fs::read(path).unwrap(), page.roff);
        }
        fs::write(dir.path().join("file"), "").unwrap();
        let refused = write(&dir.path().join("file"), &pages).unwrap_err();
        assert!(refused.to_string().contains("/file\""), "{refused}");
    }

    #[test]
    fn a_page_is_found_by_its_name_and_a_mistyped_one_gets_a_hint() {
        let pages = pages().unwrap();
        let found = |name: &str| pages.iter().find(|page| page.is_called(name)).map(Page::file_name);
        assert_eq!(found("volhost").as_deref(), Some("volhost.1"));
        assert_eq!(found("volume-ls").as_deref(), Some("volhost-volume-ls.1"));
        assert_eq!(found("volhost.json").as_deref(), Some("volhost.json.5"));
        assert_eq!(found("volum-ls"), None);
        let told = unknown("volum-ls", &pages).to_string();
        assert_eq!(told, "there is no manual page \"volum-ls\" (did you mean \"volume-ls\"?)");
    }

    #[test]
    fn the_pages_of_the_files_have_each_field_with_its_default() {
        let page = |name: &str| {
            let page = pages().unwrap().into_iter().find(|page| page.is_called(name)).unwrap();
            String::from_utf8(page.roff).unwrap()
        };
        let config = page("volhost.json");
        for told in ["\\fBlimits.request\\fR", "Default: \\fB\"20s\"\\fR. A change is in force by a reload."]
        {
            assert!(config.contains(told), "{told}: {config}");
        }
        assert!(page("backends.json").contains("It must be given."));
    }

    /// docs/reference/commands.md, for readers without the manual, has the same table.
    #[test]
    fn what_commands_print_is_told_in_the_reference_as_here() {
        let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/commands.md");
        let reference = fs::read_to_string(reference).unwrap();
        let (_, after) = reference.split_once("<!-- results -->\n").unwrap();
        let rows: Vec<_> = after.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
        let row = |result: &results::Printed| {
            let commands: Vec<_> = result.of.iter().map(|command| format!("`{command}`")).collect();
            format!("| {} | {} | {} |", commands.join(", "), result.prints, result.meaning)
        };
        assert_eq!(rows, results::TABLE.iter().map(row).collect::<Vec<_>>());
    }

    #[test]
    fn each_command_has_a_result_or_prints_no_json() {
        fn leaves(command: &clap::Command, name: &str, into: &mut BTreeSet<String>) {
            for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
                leaves(below, format!("{name} {}", below.get_name()).trim_start(), into);
            }
            if !command.has_subcommands() {
                into.insert(name.to_owned());
            }
        }
        let mut commands = BTreeSet::new();
        leaves(&super::super::Cli::command(), "", &mut commands);
        let printed = results::TABLE.iter().flat_map(|result| result.of);
        // A command may be listed with the flags that make a difference.
        let listed = printed.map(|of| of.split(" -").next().unwrap_or_default());
        let listed: BTreeSet<_> =
            listed.chain(results::WITHOUT_JSON.iter().copied()).map(str::to_owned).collect();
        assert_eq!(
            commands, listed,
            "on the left the commands, on the right those of src/cli/man/results.rs"
        );
    }

    #[test]
    fn each_result_is_in_the_page_of_its_command() {
        let pages = pages().unwrap();
        for result in results::TABLE {
            for of in result.of {
                let name = of.split(" -").next().unwrap().replace(' ', "-");
                let page = pages.iter().find(|page| page.is_called(&name)).unwrap();
                let page = String::from_utf8_lossy(&page.roff).replace("\\-", "-");
                assert!(page.contains(&format!("volhost {of} --json")), "{of}: {page}");
            }
        }
    }
}
