//! Questions to the operator before something that cannot be undone.
//!
//! Questions go to the standard error, so that the standard output holds only results. Only a clear yes
//! counts: an empty line, the end of input and anything else decline. If nobody can answer, no question is
//! asked.

use std::io::{self, BufRead, Write};

/// Reasons why the operator did not agree.
#[derive(Debug, thiserror::Error)]
pub(super) enum PromptError {
    /// The standard input is not a terminal.
    #[error("this needs a yes, and the standard input is no terminal to ask on: give --yes")]
    NoTerminal,
    /// Reading or writing failed.
    #[error("the question cannot be asked")]
    Io(#[source] io::Error),
    /// The operator did not agree.
    #[error("nothing was done: the question was not answered with {0}")]
    Declined(String),
}

/// The input and output for questions.
pub(super) struct Prompt<'a> {
    /// The source of answers.
    pub(super) input: &'a mut dyn BufRead,
    /// The destination of questions.
    pub(super) output: &'a mut dyn Write,
    /// True if the input is a terminal.
    pub(super) interactive: bool,
}

impl Prompt<'_> {
    /// Asks for a yes.
    pub(super) fn confirm(&mut self, question: &str) -> Result<(), PromptError> {
        let answer = self.ask(&format!("{question} [y/N] "))?.to_lowercase();
        if matches!(&*answer, "y" | "yes") { Ok(()) } else { Err(PromptError::Declined("yes".into())) }
    }

    /// Asks for a word to be typed; an operator who types yes out of habit does not type that.
    pub(super) fn confirm_by_typing(&mut self, question: &str, word: &str) -> Result<(), PromptError> {
        let answer = self.ask(&format!("{question} "))?;
        if answer == word { Ok(()) } else { Err(PromptError::Declined(format!("{word:?}"))) }
    }

    fn ask(&mut self, question: &str) -> Result<String, PromptError> {
        if !self.interactive {
            return Err(PromptError::NoTerminal);
        }
        self.output.write_all(question.as_bytes()).map_err(PromptError::Io)?;
        self.output.flush().map_err(PromptError::Io)?;
        let mut answer = String::new();
        self.input.read_line(&mut answer).map_err(PromptError::Io)?;
        Ok(answer.trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked<T>(answer: &str, interactive: bool, ask: impl FnOnce(&mut Prompt<'_>) -> T) -> (T, String) {
        let mut output = Vec::new();
        let result = ask(&mut Prompt { input: &mut answer.as_bytes(), output: &mut output, interactive });
        (result, String::from_utf8(output).unwrap())
    }

    #[test]
    fn only_a_clear_yes_is_one() {
        for answer in ["y\n", "Y\n", " yes \n", "YES"] {
            let (result, question) = asked(answer, true, |prompt| prompt.confirm("Delete it?"));
            assert!(result.is_ok(), "{answer:?} was declined");
            assert_eq!(question, "Delete it? [y/N] ");
        }
        for answer in ["", "\n", "n\n", "yess\n", "j\n", "y y\n"] {
            let (result, _) = asked(answer, true, |prompt| prompt.confirm("Delete it?"));
            assert!(matches!(result, Err(PromptError::Declined(_))), "{answer:?} was taken for a yes");
        }
    }

    #[test]
    fn a_name_is_typed_exactly() {
        let (result, question) = asked("web1\n", true, |p| p.confirm_by_typing("Type the name:", "web1"));
        assert!(result.is_ok());
        assert_eq!(question, "Type the name: ");
        for answer in ["web2\n", "WEB1\n", "y\n", ""] {
            let (result, _) = asked(answer, true, |p| p.confirm_by_typing("Type the name:", "web1"));
            let error = result.unwrap_err().to_string();
            assert!(error.contains("was not answered with \"web1\""), "{error}");
        }
    }

    #[test]
    fn nobody_is_asked_where_nobody_sits() {
        let (result, question) = asked("y\n", false, |prompt| prompt.confirm("Delete it?"));
        assert!(matches!(result, Err(PromptError::NoTerminal)));
        assert_eq!(question, "");
    }
}
