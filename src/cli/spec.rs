//! `spec show|write|remove|lint`: manages the file with which an engine finds this plugin, and checks those
//! of all plugins.

use clap::{Args, Subcommand};
use serde_json::json;

use super::lint::{self, Lint};
use super::{Error, Shell};
use crate::app::spec::{self, NoSpec, Planned};
use crate::config::{self, Config, Paths};
use crate::discovery::{PluginName, Presence, Preview, Written};

/// See, write, remove and examine the files by which an engine finds its plugins
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  volhost spec show             What `serve` would write, and where
  volhost spec write            Write it now, for instance from an image's build
  volhost spec write --force    Also over a file that volhost did not write
  volhost spec remove           Take it away, so that the engine finds the plugin no more
  volhost spec lint --probe     What is wrong with what the engine reads")]
pub(super) enum Spec {
    /// Print the spec file that the configuration asks for, and where it belongs
    Show,
    /// Write the spec file, if its content would change
    Write(Write),
    /// Remove the spec file, if volhost wrote it
    Remove(Remove),
    Lint(Lint),
}

#[derive(Debug, Args)]
pub(super) struct Write {
    /// Also over a file that volhost did not write
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// Also a file that volhost did not write
    #[arg(short, long)]
    force: bool,
}

pub(super) fn run(command: &Spec, shell: &mut Shell<'_>) -> Result<(), Error> {
    match command {
        // A machine with only an engine has no configuration of volhost.
        Spec::Lint(args) => lint::run(args, shell),
        Spec::Show => {
            let (config, paths) = configured(shell)?;
            let Planned { spec, format, store } = spec::plan(&config, &paths, None)?;
            show(&store.show(&spec, format)?, shell)
        }
        Spec::Write(Write { force }) => {
            let (config, paths) = configured(shell)?;
            let Planned { spec, format, store } = spec::plan(&config, &paths, None)?;
            let written = store.write(&spec, format, *force)?;
            let path = store.path(&spec.name, format);
            let result = match written {
                Written::Created => "created",
                Written::Updated => "updated",
                Written::Unchanged => "unchanged",
            };
            if shell.global.json {
                return shell.json(&json!({ "path": path.to_string_lossy(), "result": result }));
            }
            shell.line(&format!("{}: {result}", path.display()))
        }
        Spec::Remove(Remove { force }) => {
            let (config, paths) = configured(shell)?;
            let name = PluginName::parse(&config.boot.name).map_err(NoSpec::from)?;
            let removed = spec::store_of(&config, &paths).remove(&name, *force)?;
            if shell.global.json {
                let paths: Vec<_> = removed.iter().map(|path| path.to_string_lossy()).collect();
                return shell.json(&paths);
            }
            if removed.is_empty() {
                shell.note("there is no spec file of this plugin");
            }
            removed.iter().try_for_each(|path| shell.line(&format!("{}: removed", path.display())))
        }
    }
}

/// Returns the configuration, and the default paths.
fn configured(shell: &Shell<'_>) -> Result<(Config, Paths), Error> {
    let paths = Paths::of_this_process(shell.global.root.as_deref())?;
    let loaded = config::load(&paths, shell.global.config.as_deref())
        .map_err(|faults| Error::Configuration(faults.to_string()))?;
    Ok((loaded.config, paths))
}

fn show(shown: &Preview, shell: &mut Shell<'_>) -> Result<(), Error> {
    let Preview { path, content, presence } = shown;
    let (word, remark) = match presence {
        Presence::Missing => ("missing", "it is not there; `volhost spec write` writes it"),
        Presence::Current => ("current", "it is there, with this content"),
        Presence::Outdated => {
            ("outdated", "it is there, with an older content; `volhost spec write` writes this")
        }
        Presence::Foreign => {
            ("stranger", "a file that volhost did not write is there, and stays unless --force is given")
        }
    };
    if shell.global.json {
        return shell.json(&json!({ "path": path.to_string_lossy(), "presence": word, "content": content }));
    }
    shell.line(&format!("{}: {remark}", path.display()))?;
    shell.line("")?;
    shell.line(content.trim_end())
}
