//! The command line: one file for each group of commands.
//!
//! It is a client of the admin socket and knows nothing of the service's inside: a command parses its
//! arguments, asks the service and prints the answer. `serve`, `check`, `catalog`, `spec`, `doctor` and most
//! of `pki` work without a running service and call the rooms that do the work; `completions` and `man`
//! describe the command line itself. Results go to the standard output, everything else to the standard
//! error; an error is never a panic.

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

// The description of a command is at its arguments, in its group's file.
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

/// Reasons why a command failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The service refused, or cannot be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The operator did not agree.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The result cannot be printed.
    #[error("the result cannot be printed")]
    Output(#[source] io::Error),
    /// The result cannot be written as JSON.
    #[error("the result cannot be written as JSON")]
    Json(#[source] serde_json::Error),
    /// Each argument is right, but they do not go together.
    #[error("{0}")]
    Usage(String),
    /// The configuration is wrong: one fault a line.
    #[error("{0}")]
    Configuration(String),
    /// The default paths cannot be determined.
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
    /// The command could not do what it was asked to.
    #[error("{0}")]
    Refused(String),
    /// Several operations were requested, and these failed.
    #[error("{} of the things asked for failed", .0.len())]
    Several(Vec<Error>),
    /// The service did not start, or failed.
    #[error(transparent)]
    Serve(ServeError),
    /// The plugins cannot be called.
    #[error("plugins cannot be called")]
    Probe(#[source] io::Error),
    /// The catalog was not exported, imported, rebuilt or compared.
    #[error(transparent)]
    Recovery(RecoveryError),
    /// A request could not be made or signed, or a certificate not installed.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// A named file cannot be read or written.
    #[error("{} cannot be {doing}", .path.display())]
    File {
        /// The path of the file.
        path: PathBuf,
        /// The failed operation, as a participle after "cannot be".
        doing: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// There is no spec file to act on.
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

    /// Returns true if the reader of the standard output has closed it.
    fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Runs the program with this process's arguments, input and outputs.
#[must_use]
pub fn run() -> ExitCode {
    let terminal = io::stdout().is_terminal();
    // The standard output is never locked for long, because `serve` prints to it from other threads.
    let mut out: Box<dyn Write> =
        if terminal { Box::new(io::stdout()) } else { Box::new(io::BufWriter::new(io::stdout())) };
    // Without this, a write beyond the limit of a file's size ends the process and leaves half a file behind.
    // If the call fails, commands still work.
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
            shell.print_to_stderr("error", &in_one_line(text.strip_prefix("error: ").unwrap_or(&text)));
            return exit::USAGE;
        }
        Err(told) => {
            // clap prints help and usage errors. A failure to print them changes nothing.
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
            shell.print_error(&error);
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

/// The environment of a command: its global flags, and the process's input and outputs.
struct Shell<'a> {
    global: Global,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    input: &'a mut dyn BufRead,
    /// True if the standard input is a terminal.
    interactive: bool,
    /// The width of the terminal on the standard output; `None` if it is not a terminal.
    width: Option<u16>,
    /// True if the standard output shows colours.
    colour: bool,
    /// True if binary data may go to the standard output, because it is not a terminal.
    binary_welcome: bool,
}

impl Shell<'_> {
    /// Returns a client of the service that this command line means.
    fn client(&mut self) -> Result<Client, Error> {
        Ok(Client::new(self.admin_socket()?))
    }

    /// Returns the admin socket: `--socket`, else the configured one, else the default.
    fn admin_socket(&mut self) -> Result<PathBuf, Error> {
        let Global { root, config, socket, json: _ } = &self.global;
        if let Some(socket) = socket {
            return Ok(socket.clone());
        }
        let paths = Paths::of_this_process(root.as_deref())?;
        // This reads the configuration as a running service does: files that only the service needs may be
        // missing.
        match config::served(&paths, config.as_deref()) {
            Ok(loaded) => Ok(loaded.config.boot.admin),
            // A user who names a configuration means the service that it configures, not the default one.
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
    fn print_table_to_stderr(&mut self, listing: Listing) {
        let _ = self.out.flush();
        // An operator who cannot see the table will not answer yes.
        let _ = self.err.write_all(listing.render(self.width).as_bytes());
    }

    /// Prints a note to the standard error.
    fn note(&mut self, text: &str) {
        self.print_to_stderr("note", text);
    }

    /// Prints a line to the standard error; with `--json` an object with one field.
    fn print_to_stderr(&mut self, field: &str, text: &str) {
        // Earlier output must be seen first; if it cannot be written, the end of the command reports that. A
        // note that nobody can read changes nothing about the result.
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

    /// Prints why the command failed: one line for each error.
    fn print_error(&mut self, error: &Error) {
        let mut tell =
            |text: &str| self.print_to_stderr("error", &format!("volhost: {}", table::printable(text)));
        match error {
            Error::Several(errors) => errors.iter().for_each(|error| self.print_error(error)),
            // Each fault is printed as a separate error.
            Error::Configuration(faults) => faults.lines().for_each(tell),
            error => tell(&in_one_line(&chain(error))),
        }
    }

    /// Hints at this machine's service if a user's command addresses a service of the user that does not
    /// exist.
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

/// Acts on one item after another, and goes on if the service refuses one.
fn each<T>(items: &[T], mut act: impl FnMut(&T) -> Result<(), Error>) -> Result<(), Error> {
    let mut errors = Vec::new();
    for item in items {
        match act(item) {
            Ok(()) => {}
            Err(refused @ Error::Client(ClientError::Failed(_))) => errors.push(refused),
            // If the service cannot be asked or the output fails, the next item would fail too.
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
