//! `loans USER`: who has what.

use std::fmt::Write as _;

use super::{STEP, connect, failed, say_if_nothing_is_there};
use crate::ids::UserId;
use crate::json::Object;
use crate::lending::MOST_BOOKS_IN_HAND;
use crate::link::{Connection, Fields, ask};
use crate::request::failure::{DONE, Failure};
use crate::request::options::Run;
use crate::request::show::{Form, print, say};
use crate::text::{escaped, push_escaped};

/// `loans USER`. What is noted of the user's books is held against the loans; if that does not
/// make as many as the user's count says, an instance of the reference application has lent some,
/// and the loans are gone through in steps until all are found.
///
/// # Errors
/// What Redis or the link said, or the output.
pub fn loans(run: &Run, user: &UserId) -> Result<u8, Failure> {
    const DOING: &str = "read the loans";
    let mut connection = connect(run)?;
    let mut command = redis::cmd("GET");
    command.arg(run.keys.count(user));
    let count: Option<Vec<u8>> = ask(&mut connection, DOING, &command).map_err(failed(run))?;
    let count = count.map_or("0".to_owned(), |count| String::from_utf8_lossy(&count).into_owned());
    // Where the count is no number, all loans are gone through.
    let counted: Option<u64> = count.parse().ok();
    let mut books = noted_loans(run, &mut connection, user)?;
    let mut cursor = String::from("0");
    while counted.is_none_or(|counted| (books.len() as u64) < counted) {
        let mut command = redis::cmd("HSCAN");
        command.arg(&run.keys.loans).arg(&cursor).arg("COUNT").arg(STEP);
        let (next, page): (String, Fields) =
            ask(&mut connection, DOING, &command).map_err(failed(run))?;
        for (book, holder) in page {
            let book = String::from_utf8_lossy(&book).into_owned();
            // A scan can tell an entry twice.
            if holder == user.as_str().as_bytes() && !books.contains(&book) {
                books.push(book);
            }
        }
        cursor = next;
        if cursor == "0" {
            break;
        }
    }
    books.sort_unstable();
    let found = books.len() as u64;
    if found == 0 {
        say_if_nothing_is_there(run, &mut connection);
    }
    let mut line = String::new();
    if run.form == Form::Json {
        let object = Object::new().text("user_id", user.as_str());
        let object = object.number("in_hand", counted.unwrap_or(found));
        let object = object.number("limit", MOST_BOOKS_IN_HAND as u64);
        line = object.texts("book_ids", &books).line();
    } else {
        push_escaped(&mut line, user.as_str());
        let _ = match found {
            0 => write!(line, " has no books"),
            _ => write!(line, " has {found} of {MOST_BOOKS_IN_HAND} books"),
        };
        for (n, book) in books.iter().enumerate() {
            line.push_str(if n > 0 { ", " } else { ": " });
            push_escaped(&mut line, book);
        }
        line.push('\n');
    }
    if counted != Some(found) {
        // An event may have been decided between our reading of one and the other.
        let perhaps = if counted.is_some() { "it changes right now, or " } else { "" };
        say(&format!(
            "the count of {} is {}: {perhaps}{} tells why",
            escaped(user.as_str()),
            escaped(&count),
            run.command("library-admin check", &[])
        ));
    }
    print(&line)?;
    Ok(DONE)
}

/// Those of the books noted of a user that are lent to the user.
fn noted_loans(
    run: &Run,
    connection: &mut Connection,
    user: &UserId,
) -> Result<Vec<String>, Failure> {
    const DOING: &str = "read a user's loans";
    let mut command = redis::cmd("HGET");
    command.arg(&run.keys.books_of_users).arg(user.as_str());
    let noted: Option<Vec<u8>> = ask(connection, DOING, &command).map_err(failed(run))?;
    let noted = String::from_utf8_lossy(&noted.unwrap_or_default()).into_owned();
    let books: Vec<&str> = noted.split(',').filter(|book| !book.is_empty()).collect();
    if books.is_empty() {
        return Ok(Vec::new());
    }
    let mut command = redis::cmd("HMGET");
    command.arg(&run.keys.loans).arg(&books);
    let holders: Vec<Option<Vec<u8>>> = ask(connection, DOING, &command).map_err(failed(run))?;
    let user = Some(user.as_str().as_bytes());
    let lent = books.into_iter().zip(holders).filter(|(_, holder)| holder.as_deref() == user);
    Ok(lent.map(|(book, _)| book.to_owned()).collect())
}
