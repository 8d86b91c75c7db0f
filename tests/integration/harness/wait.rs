//! Waiting with a bound: every wait of a test ends, and says what it waited for.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that is normally done at once. Generous, because test machines are slow and shared.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Asks until there is an answer; panics with `what` when there is none in time.
pub(crate) fn until<T>(what: &str, within: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < within, "waited {within:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a finished command said.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    /// The command line, for messages.
    pub command: String,
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// What it printed, with the white space at the end cut off.
    pub stdout: String,
    /// What it complained about, likewise.
    pub stderr: String,
}

impl Said {
    /// What a command printed that had to succeed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{} failed: {}\n{}", self.command, self.stderr, self.stdout);
        self.stdout
    }

    /// What a command complained about that had to fail.
    #[track_caller]
    pub(crate) fn fails(self) -> String {
        assert!(self.code != Some(0), "{} succeeded: {}\n{}", self.command, self.stdout, self.stderr);
        self.stderr
    }

    /// The JSON that a command printed that had to succeed.
    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        let command = self.command.clone();
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{command} printed no JSON: {e}\n{text}"))
    }
}

/// Runs a command to its end, which comes after two minutes at the latest.
pub(crate) fn run(command: &Command) -> Said {
    let mut bounded = Command::new("timeout");
    bounded.args(["--kill-after=5", "120"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bounded.env(name, value),
            None => bounded.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        bounded.current_dir(dir);
    }
    let output = bounded.stdin(Stdio::null()).output().expect("coreutils' timeout can be started");
    said(command, &output)
}

/// Puts a command's end into words.
fn said(command: &Command, output: &Output) -> Said {
    let words: Vec<_> =
        [command.get_program()].into_iter().chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    Said {
        command: words.join(" "),
        code: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}
