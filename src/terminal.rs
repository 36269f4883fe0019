//! What the programs print: answers to stdout, messages to stderr.

use std::io::{self, ErrorKind, Write as _};

use crate::text::push_printable;

/// Writes to stdout. Returns whether there is still somebody who reads: one that has gone away wants no
/// more, which is no failure.
///
/// # Errors
/// It could not be written, for another reason.
pub fn print(text: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a line of a program to stderr, whatever is in it: what was typed, names of files and words of a
/// server are in messages too. If nobody can read even that, nothing is left to be done.
pub fn say(program: &str, line: &str) {
    let mut said = format!("{program}: ");
    push_printable(&mut said, line);
    said.push('\n');
    let _ = io::stderr().lock().write_all(said.as_bytes());
}
