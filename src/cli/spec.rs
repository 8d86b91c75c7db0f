//! `spec show|write|remove`: the file by which an engine finds this plugin.

use clap::{Args, Subcommand};

use super::{Error, Shell};

/// See, write and remove the file by which an engine finds this plugin
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  volhost spec show             What `serve` would write, and where
  volhost spec write            Write it now, for instance from an image's build
  volhost spec write --force    Also over a file that volhost did not write
  volhost spec remove           Take it away, so that the engine finds the plugin no more")]
pub(super) enum Spec {
    /// Print the spec file that the configuration asks for, and where it belongs
    Show,
    /// Write the spec file, if its content would change
    Write(Write),
    /// Remove the spec file, if volhost wrote it
    Remove(Remove),
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

pub(super) fn run(command: &Spec, _shell: &mut Shell<'_>) -> Result<(), Error> {
    // NOT WIRED: discovery.
    match command {
        Spec::Show => Err(Error::NotWired("discovery")),
        Spec::Write(Write { force: _ }) => Err(Error::NotWired("discovery")),
        Spec::Remove(Remove { force: _ }) => Err(Error::NotWired("discovery")),
    }
}
