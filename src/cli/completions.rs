//! `completions`: prints the script with which a shell completes volhost's commands and flags.

use std::io;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell as Dialect;

use super::{Cli, Error, Shell};

/// Print the script by which a shell completes commands and flags
#[derive(Debug, Args)]
#[command(after_help = "\
Examples, each for every user of the machine, from the next shell on:
  volhost completions bash > /usr/share/bash-completion/completions/volhost
                              (read where the package bash-completion is installed)
  volhost completions zsh > /usr/local/share/zsh/site-functions/_volhost
  volhost completions fish > /usr/share/fish/vendor_completions.d/volhost.fish

For oneself:
  bash        in ~/.bashrc: source <(volhost completions bash)
  zsh         a file _volhost in a directory of $fpath, named before compinit is called
  fish        volhost completions fish > ~/.config/fish/completions/volhost.fish
  elvish      in ~/.config/elvish/rc.elv: eval (volhost completions elvish | slurp)
  powershell  in $PROFILE: volhost completions powershell | Out-String | Invoke-Expression

The script is made for this version: print it again after an upgrade.")]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Dialect,
}

pub(super) fn run(args: &Completions, shell: &mut Shell<'_>) -> Result<(), Error> {
    let script = script(args.shell).map_err(Error::Output)?;
    shell.out.write_all(&script).map_err(Error::Output)
}

/// Returns the whole script before any of it is printed, because the library panics if it cannot write.
fn script(dialect: Dialect) -> io::Result<Vec<u8>> {
    let mut command = Cli::command();
    command.set_bin_name("volhost");
    command.build();
    let mut script = Vec::new();
    clap_complete::Generator::try_generate(&dialect, &command, &mut script)?;
    Ok(script)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Stdio};

    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn the_script_for_bash_is_as_its_golden_file() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/completions/volhost.bash");
        let script = String::from_utf8(script(Dialect::Bash).unwrap()).unwrap();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, &script).unwrap();
        }
        let golden = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            script == golden,
            "the script is another: UPDATE_GOLDEN=1 cargo test --lib cli::, then look at it"
        );
    }

    #[test]
    fn every_shell_has_a_script_that_names_every_group_of_commands() {
        for dialect in Dialect::value_variants() {
            let text = String::from_utf8(script(*dialect).unwrap()).unwrap();
            for command in Cli::command().get_subcommands() {
                assert!(text.contains(command.get_name()), "{dialect}: {}", command.get_name());
            }
        }
    }

    /// Returns what bash offers after these words, the last of which is being typed.
    fn offered(words: &[&str]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("volhost.bash");
        std::fs::write(&file, script(Dialect::Bash).unwrap()).unwrap();
        // This does what readline does for a word: it calls the function that `complete` has registered for
        // the command.
        let typed = "
            set -eu
            source \"$1\"; shift
            registered=$(complete -p volhost)
            [[ $registered =~ -F\\ ([^ ]+) ]]
            COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); COMP_LINE=\"$*\"; COMP_POINT=${#COMP_LINE}
            previous=${COMP_WORDS[COMP_CWORD - 1]}
            set +eu
            ${BASH_REMATCH[1]} volhost \"${COMP_WORDS[COMP_CWORD]}\" \"$previous\"
            printf '%s\\n' \"${COMPREPLY[@]}\"";
        let mut bash = Command::new("bash");
        bash.args(["--norc", "--noprofile", "-c", typed, "bash"]).arg(&file).args(words);
        let output = bash.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn bash_reads_the_script_and_completes_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("volhost.bash");
        std::fs::write(&file, script(Dialect::Bash).unwrap()).unwrap();
        let read = Command::new("bash").arg("-n").arg(&file).output().unwrap();
        assert!(read.status.success() && read.stderr.is_empty(), "{}", String::from_utf8_lossy(&read.stderr));

        assert_eq!(offered(&["volhost", "vol"]), ["volume"]);
        assert_eq!(offered(&["volhost", "volume", "re"]), ["remove", "restore"]);
        assert_eq!(offered(&["volhost", "volume", "ls", "--tr"]), ["--trash"]);
        assert_eq!(offered(&["volhost", "mount", "release", "--so"]), ["--socket"]);
        assert_eq!(offered(&["volhost", "completions", "z"]), ["zsh"]);
    }
}
