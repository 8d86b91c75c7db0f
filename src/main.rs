//! The program: maps what the library returns to an exit code, and does nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    volhost::cli::run()
}
