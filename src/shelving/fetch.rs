//! The call by which lending gets books from the main storage. Asked again by the same request, it
//! answers the same, so a caller that died in the middle is simply followed by another.

use std::sync::LazyLock;

use redis::{Cmd, Value};

use crate::error::Error;
use crate::ids::{BookId, EventId};
use crate::script::{Reply, Script, text};
use crate::session::Session;

static SCRIPT: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../../lua/fetch.lua")));

/// The command that asks for books, each for one request.
pub fn command<'a>(
    session: &Session,
    asked: impl IntoIterator<Item = (&'a BookId, EventId)>,
    by_text: bool,
) -> Cmd {
    let mut cmd = if by_text { SCRIPT.by_text(2) } else { SCRIPT.by_digest(2) };
    cmd.arg(session.lock()).arg(&session.keys.shelves).arg(&session.token);
    for (book, request) in asked {
        cmd.arg(book.as_str()).arg(request.to_string());
    }
    cmd
}

/// Whether each book was handed out, in the order in which they were asked for.
///
/// # Errors
/// [`Error::Fenced`], or the reply is none of this script.
pub fn answers(reply: Value, asked: usize) -> Result<Vec<bool>, Error> {
    const DOING: &str = "fetch books from the main storage";
    let reply = Reply::read(reply, DOING)?;
    let answers: Option<Vec<bool>> = reply
        .rest
        .iter()
        .map(|answer| match text(answer) {
            Some("yes") => Some(true),
            Some("no") => Some(false),
            _ => None,
        })
        .collect();
    match answers {
        Some(answers) if reply.word == "FETCHED" && answers.len() == asked => Ok(answers),
        _ => Err(reply.unexpected(DOING)),
    }
}
