//! The call by which lending gets books from the main storage. Asked again by the same request, it
//! hands the book out again, and says so: a caller that died in the middle is simply followed by
//! another.

use std::sync::LazyLock;

use redis::Value;

use crate::error::Error;
use crate::ids::{BookId, EventId};
use crate::script::{Reply, Script, ScriptCall, lua, text};
use crate::session::Session;

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("fetch")));
static UNDO: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("unfetch")));

/// The call that asks for books, each for one request. The answer to the fetch of that number is
/// left for the call behind it, see [`Answer::Left`].
pub fn call<'a>(
    session: &Session,
    asked: impl Iterator<Item = (&'a BookId, EventId)> + Clone,
    number: u64,
) -> ScriptCall {
    let mut call = SCRIPT.call(3);
    call.arg(session.lock()).arg(&session.keys.shelves).arg(&session.keys.fetch_answers);
    call.arg(&session.token).arg(number).arg(session.consumer());
    for (book, _) in asked.clone() {
        call.arg(book.as_str());
    }
    // A request's books stand side by side: its id is written once.
    let (mut last, mut written) = (None, String::new());
    for (_, request) in asked {
        if last != Some(request) {
            last = Some(request);
            written.clear();
            request.push_to(&mut written);
        }
        call.arg(&written);
    }
    call
}

/// What shelving says of a book that a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was on its shelf, and is out for this request now.
    Yes,
    /// It has been out for this request since it was asked before. The request may have put it
    /// back meanwhile, and it may have passed through other hands.
    Again,
    /// It is out for another: what the main storage has noted of it, a request's id.
    TakenBy(String),
    /// It is not known here yet: the answer lies in Redis.
    Left,
}

/// What shelving said of each book, in the order in which they were asked for.
///
/// # Errors
/// [`Error::Fenced`], or the reply is none of this script.
pub fn answers(reply: Value, asked: usize) -> Result<Vec<Answer>, Error> {
    const DOING: &str = "fetch books from the main storage";
    let reply = Reply::read(reply, DOING)?;
    if reply.word == "ALL" {
        return Ok(vec![Answer::Yes; asked]);
    }
    if reply.word != "FETCHED" || reply.rest.len() != asked {
        return Err(reply.unexpected(DOING));
    }
    Ok(reply
        .rest
        .iter()
        .map(|answer| match text(answer) {
            Some("yes") => Answer::Yes,
            Some("again") => Answer::Again,
            // What is no text was laid down by hand; it names no request that could be waited for.
            other => Answer::TakenBy(other.unwrap_or("?").to_owned()),
        })
        .collect())
}

/// The call that puts books back which a request may have fetched and will never use.
pub fn undo<'a>(
    session: &Session,
    fetched: impl IntoIterator<Item = (&'a [u8], EventId)>,
) -> ScriptCall {
    let mut call = UNDO.call(2);
    call.arg(session.lock()).arg(&session.keys.shelves).arg(&session.token);
    for (book, request) in fetched {
        call.arg(book).arg(request);
    }
    call
}
