//! `where BOOK`: where a book is.

use std::fmt::Write as _;

use super::{connect, failed, say_if_nothing_is_there};
use crate::error::Error;
use crate::ids::BookId;
use crate::json::Object;
use crate::link::{Connection, ask, ask_at_once};
use crate::request::failure::{DONE, Failure};
use crate::request::options::Run;
use crate::request::show::{Form, print};
use crate::text::{push_escaped, push_printable};

/// Where a book can be.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Lent(String),
    Storage,
    Reserved,
    OnItsWay,
    Unknown,
    Shelf,
}

impl Place {
    /// The word for programs, and the words for people.
    fn words(&self) -> (&'static str, &'static str) {
        match self {
            Self::Lent(_) => ("lent", "lent"),
            Self::Storage => ("automated_storage", "in automated storage"),
            Self::Reserved => ("reserved", "reserved by a request that is being worked on"),
            Self::OnItsWay => ("on_its_way", "on its way to its shelf"),
            Self::Unknown => ("unknown", "out of main storage, on its way or missing"),
            Self::Shelf => ("shelf", "on its shelf"),
        }
    }
}

/// `where BOOK`.
///
/// # Errors
/// What Redis or the link said, or the output.
pub fn whereabouts(run: &Run, book: &BookId, show_user: bool) -> Result<u8, Failure> {
    let mut connection = connect(run)?;
    let place = place(run, &mut connection, book).map_err(failed(run))?;
    if place == Place::Shelf {
        say_if_nothing_is_there(run, &mut connection);
    }
    let (word, words) = place.words();
    let mut line = String::new();
    let holder = match &place {
        Place::Lent(user) if show_user => Some(user),
        _ => None,
    };
    if run.form == Form::Json {
        let object = Object::new().text("book_id", book.as_str()).text("where", word);
        line = match holder {
            Some(user) => object.text("user_id", user),
            None => object,
        }
        .line();
    } else {
        push_escaped(&mut line, book.as_str());
        let _ = write!(line, ": {words}");
        if place == Place::Unknown {
            push_printable(&mut line, &format!(" ({})", run.command("library-admin check", &[])));
        }
        if let Some(user) = holder {
            line.push_str(" to ");
            push_escaped(&mut line, user);
        }
        line.push('\n');
    }
    print(&line)?;
    Ok(DONE)
}

/// Reads all that is known about the book at one instant.
fn place(run: &Run, connection: &mut Connection, book: &BookId) -> Result<Place, Error> {
    const DOING: &str = "look for the book";
    let keys = &run.keys;
    let book = book.as_str();
    type Text = Option<Vec<u8>>;
    let question = |command: &str, key: &str| {
        let mut question = redis::cmd(command);
        question.arg(key).arg(book);
        question
    };
    let questions = [
        question("HGET", &keys.loans),
        question("SISMEMBER", &keys.storage),
        question("HGET", &keys.shelves),
        question("HGET", &keys.book_states),
    ];
    let (lent, stored, out, state): (Text, bool, Text, Text) =
        ask_at_once(connection, DOING, &questions)?;
    if let Some(user) = lent {
        return Ok(Place::Lent(String::from_utf8_lossy(&user).into_owned()));
    }
    if stored {
        return Ok(Place::Storage);
    }
    match state.as_deref().and_then(|state| state.first()) {
        Some(b'?') => return Ok(Place::Reserved),
        Some(b'>') if out.is_some() => return Ok(Place::OnItsWay),
        _ => {}
    }
    let Some(fetched_by) = out else {
        return Ok(Place::Shelf);
    };
    // An instance of the reference application keeps what it reserves in a set of the request's.
    let id = String::from_utf8_lossy(&fetched_by).parse();
    let Ok(id) = id else {
        return Ok(Place::Unknown);
    };
    let reserved: bool = ask(connection, DOING, &question("SISMEMBER", &keys.reservation(id)))?;
    Ok(if reserved { Place::Reserved } else { Place::Unknown })
}
