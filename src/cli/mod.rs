//! The command line: one file for each group of commands.
//!
//! A client of the admin socket that knows nothing of the inside: a command parses its arguments, asks the service
//! and prints the answer. `serve`, `check`, `catalog`, `spec`, `doctor` and most of `pki`, which work without a running
//! service, hand over to the rooms that do; `completions` and `man` speak of the command line itself. Results go to the
//! standard output, everything else to the standard error; no error is a panic.

use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use self::prompt::{Prompt, PromptError};
use self::table::Listing;
use crate::admin::client::{Client, ClientError};
use crate::app::certificates::CertificatesError;
use crate::app::recovery::RecoveryError;
use crate::app::spec::NoSpec;
use crate::app::{self, ServeError};
use crate::config::paths::PathsError;
use crate::config::{self, Paths};
use crate::discovery::SpecError;
use crate::error::{chain, exit};

mod backend;
mod bundle;
mod catalog;
mod check;
mod completions;
mod doctor;
mod filter;
mod host;
mod lint;
mod man;
mod mount;
mod output;
mod pki;
mod prompt;
mod reload;
mod serve;
mod spec;
mod status;
mod table;
mod volume;

/// Directories on local or shared storage as volumes for every Docker host
#[derive(Debug, Parser)]
#[command(name = "volhost", version, arg_required_else_help = true, max_term_width = 100, after_help = EXAMPLES)]
#[cfg_attr(feature = "etcd", command(long_version = concat!(env!("CARGO_PKG_VERSION"), " (with etcd)")))]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  volhost serve                            Serve; what is missing is made
  docker volume create -d volhost db       Use it, from any engine with its spec file
  volhost volume ls --filter mounted=true  See which volumes are in use
  volhost host add web1 -o web1.tar        Let another machine's engine use it
  volhost check && volhost serve           Read a changed configuration first

Exit codes: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration.";

/// The flags that every command takes, before or after its name.
#[derive(Debug, Clone, Default, Args)]
struct Global {
    /// Put every default path below DIR: for trials and tests
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    root: Option<PathBuf>,
    /// Read the configuration from FILE [default: /etc/volhost/volhost.json]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    config: Option<PathBuf>,
    /// Ask the service at this admin socket [default: the configured one]
    #[arg(long, global = true, value_name = "PATH", help_heading = "Global options")]
    socket: Option<PathBuf>,
    /// Print JSON instead of a table, and errors as JSON too
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
}

// What a command is for stands with its arguments, in its group's file.
#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Check(check::Check),
    Status(status::Status),
    Reload(reload::Reload),
    #[command(subcommand)]
    Volume(volume::Volume),
    #[command(subcommand)]
    Mount(mount::Mount),
    #[command(subcommand)]
    Backend(backend::Backend),
    #[command(subcommand)]
    Host(host::Host),
    #[command(subcommand)]
    Pki(pki::Pki),
    #[command(subcommand)]
    Catalog(catalog::Catalog),
    #[command(subcommand)]
    Spec(spec::Spec),
    Doctor(doctor::Doctor),
    Completions(completions::Completions),
    Man(man::Man),
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The service did not do it, or cannot be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Nobody agreed to it.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The result cannot be printed.
    #[error("the result cannot be printed")]
    Output(#[source] io::Error),
    /// The result cannot be written as JSON.
    #[error("the result cannot be written as JSON")]
    Json(#[source] serde_json::Error),
    /// Arguments that each are right but do not go together.
    #[error("{0}")]
    Usage(String),
    /// The configuration is wrong: one fault a line.
    #[error("{0}")]
    Configuration(String),
    /// The default paths cannot be told.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// The spec file was not written or removed.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A bundle cannot be written.
    #[error(transparent)]
    Bundle(#[from] host::BundleError),
    /// The manual was not written.
    #[error(transparent)]
    Man(#[from] man::ManError),
    /// There is nothing that the command could do as it was asked.
    #[error("{0}")]
    Refused(String),
    /// Several things were asked for, and these failed.
    #[error("{} of the things asked for failed", .0.len())]
    Several(Vec<Error>),
    /// The service did not start, or ended badly.
    #[error(transparent)]
    Serve(ServeError),
    /// Plugins cannot be called.
    #[error("plugins cannot be called")]
    Probe(#[source] io::Error),
    /// The catalog was not exported, imported, rebuilt or compared.
    #[error(transparent)]
    Recovery(RecoveryError),
    /// A request was not made or signed, or a certificate not installed.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// A file that was named cannot be read or written.
    #[error("{} cannot be {doing}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried, after "cannot be".
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no spec file to speak of.
    #[error(transparent)]
    NoSpec(#[from] NoSpec),
}

impl Error {
    fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => exit::USAGE,
            Self::Configuration(_) => exit::CONFIG,
            Self::Client(_)
            | Self::Prompt(_)
            | Self::Output(_)
            | Self::Json(_)
            | Self::Paths(_)
            | Self::Spec(_)
            | Self::Bundle(_)
            | Self::Man(_)
            | Self::Refused(_)
            | Self::Several(_)
            | Self::Serve(_)
            | Self::Probe(_)
            | Self::Recovery(_)
            | Self::Certificates(_)
            | Self::File { .. }
            | Self::NoSpec(_) => exit::FAILED,
        }
    }

    /// Whether the reader of the standard output has seen enough and gone away.
    fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Runs the program with this process's arguments, input and outputs.
#[must_use]
pub fn run() -> ExitCode {
    let terminal = io::stdout().is_terminal();
    // The standard output is never locked for long: `serve` prints to it from other threads.
    let mut out: Box<dyn Write> =
        if terminal { Box::new(io::stdout()) } else { Box::new(io::BufWriter::new(io::stdout())) };
    // Without it such a write ends the process, and leaves half a file behind; no command needs it to go on.
    let _ = app::survive_file_size_limit();
    let (mut err, mut input) = (io::stderr(), io::stdin().lock());
    let mut shell = Shell {
        global: Global::default(),
        out: &mut out,
        err: &mut err,
        input: &mut input,
        interactive: io::stdin().is_terminal(),
        width: table::terminal_width(),
        colour: terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
        binary_welcome: !terminal,
    };
    ExitCode::from(main(std::env::args_os(), &mut shell))
}

/// Runs one command line and returns its exit code.
fn main(arguments: impl IntoIterator<Item = OsString>, shell: &mut Shell<'_>) -> u8 {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(told) if told.use_stderr() && arguments.iter().any(|argument| argument == "--json") => {
            shell.global.json = true;
            let text = told.render().to_string();
            shell.aside("error", &in_one_line(text.strip_prefix("error: ").unwrap_or(&text)));
            return exit::USAGE;
        }
        Err(told) => {
            // Help and usage errors are clap's to print; that nobody reads them changes nothing.
            let _ = told.print();
            return u8::try_from(told.exit_code()).unwrap_or(exit::USAGE);
        }
    };
    shell.global = cli.global;
    let result = dispatch(cli.command, shell).and_then(|()| shell.out.flush().map_err(Error::Output));
    match result {
        Ok(()) => 0,
        Err(error) if error.is_broken_pipe() => 0,
        Err(error) => {
            shell.complain(&error);
            if matches!(error, Error::Client(ClientError::Missing { .. })) {
                shell.hint_at_root();
            }
            error.code()
        }
    }
}

fn dispatch(command: Command, shell: &mut Shell<'_>) -> Result<(), Error> {
    match command {
        Command::Serve(args) => serve::run(&args, shell),
        Command::Check(args) => check::run(&args, shell),
        Command::Status(args) => status::run(&args, shell),
        Command::Reload(args) => reload::run(&args, shell),
        Command::Volume(command) => volume::run(command, shell),
        Command::Mount(command) => mount::run(command, shell),
        Command::Backend(command) => backend::run(command, shell),
        Command::Host(command) => host::run(command, shell),
        Command::Pki(command) => pki::run(command, shell),
        Command::Catalog(command) => catalog::run(&command, shell),
        Command::Spec(command) => spec::run(&command, shell),
        Command::Doctor(args) => doctor::run(&args, shell),
        Command::Completions(args) => completions::run(&args, shell),
        Command::Man(args) => man::run(&args, shell),
    }
}

/// What a command has around it: its global flags and the process's input and outputs.
struct Shell<'a> {
    global: Global,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    input: &'a mut dyn BufRead,
    /// Whether somebody sits at the standard input.
    interactive: bool,
    /// The width of the terminal on the standard output, if that is one.
    width: Option<u16>,
    /// Whether the standard output shows colours.
    colour: bool,
    /// Whether the standard output is no terminal, which binary data would garble.
    binary_welcome: bool,
}

impl Shell<'_> {
    /// A client of the service that this command line means.
    fn client(&mut self) -> Result<Client, Error> {
        Ok(Client::new(self.admin_socket()?))
    }

    /// Where the service is asked: `--socket`, else what the configuration says, else the default.
    fn admin_socket(&mut self) -> Result<PathBuf, Error> {
        let Global { root, config, socket, json: _ } = &self.global;
        if let Some(socket) = socket {
            return Ok(socket.clone());
        }
        let paths = Paths::of_this_process(root.as_deref())?;
        // As a service reads it while it serves: files that only the service needs may be missing.
        match config::served(&paths, config.as_deref()) {
            Ok(loaded) => Ok(loaded.config.boot.admin),
            // Whoever names a configuration means the service that it configures, not the default one.
            Err(faults) if config.is_some() => Err(Error::Configuration(faults.to_string())),
            Err(_) => {
                self.note("volhost: the configuration has faults (`volhost check` tells them): the default admin socket is asked");
                Ok(paths.admin())
            }
        }
    }

    /// Prints a result as JSON, for programs.
    fn json(&mut self, result: &impl Serialize) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(result).map_err(Error::Json)?;
        self.line(&text)
    }

    /// Prints a line of a result.
    fn line(&mut self, text: &str) -> Result<(), Error> {
        writeln!(self.out, "{text}").map_err(Error::Output)
    }

    /// Prints a result as a table.
    fn table(&mut self, listing: Listing) -> Result<(), Error> {
        self.out.write_all(listing.render(self.width).as_bytes()).map_err(Error::Output)
    }

    /// Prints a table that belongs to a question.
    fn table_aside(&mut self, listing: Listing) {
        let _ = self.out.flush();
        // Whoever cannot see the question will not answer it with yes.
        let _ = self.err.write_all(listing.render(self.width).as_bytes());
    }

    /// Tells something beside the result.
    fn note(&mut self, text: &str) {
        self.aside("note", text);
    }

    /// Prints a line to the standard error; for programs (`--json`) an object with one field.
    fn aside(&mut self, field: &str, text: &str) {
        // What was printed before is seen before; if it cannot be, the end of the command tells. A note that nobody
        // can read changes nothing of what was done.
        let _ = self.out.flush();
        let _ = if self.global.json {
            writeln!(
                self.err,
                "{}",
                serde_json::json!({ field: text.strip_prefix("volhost: ").unwrap_or(text) })
            )
        } else {
            writeln!(self.err, "{text}")
        };
    }

    /// Tells why the command failed: one line for each error.
    fn complain(&mut self, error: &Error) {
        let mut tell = |text: &str| self.aside("error", &format!("volhost: {}", table::printable(text)));
        match error {
            Error::Several(errors) => errors.iter().for_each(|error| self.complain(error)),
            // Each fault is an error of its own.
            Error::Configuration(faults) => faults.lines().for_each(tell),
            error => tell(&in_one_line(&chain(error))),
        }
    }

    /// Tells a user who asks a service of their own, and has none, that this machine has one.
    fn hint_at_root(&mut self) {
        let Global { root, config, socket, json: _ } = &self.global;
        let asks_own = root.is_none() && config.is_none() && socket.is_none();
        if asks_own && !rustix::process::geteuid().is_root() && Path::new("/run/volhost").exists() {
            self.note("volhost: the service of this machine is asked as root");
        }
    }

    fn prompt(&mut self) -> Prompt<'_> {
        Prompt { input: self.input, output: self.err, interactive: self.interactive }
    }
}

fn in_one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

/// Does one thing after another, none of them left out because the service refused an earlier one.
fn each<T>(items: &[T], mut act: impl FnMut(&T) -> Result<(), Error>) -> Result<(), Error> {
    let mut errors = Vec::new();
    for item in items {
        match act(item) {
            Ok(()) => {}
            Err(refused @ Error::Client(ClientError::Failed(_))) => errors.push(refused),
            // A service that cannot be asked about one cannot be asked about the next, and so with printing.
            Err(error) => {
                errors.push(error);
                break;
            }
        }
    }
    match errors.len() {
        0 => Ok(()),
        1 => errors.pop().map_or(Ok(()), Err),
        _ => Err(Error::Several(errors)),
    }
}

#[cfg(test)]
mod tests;
