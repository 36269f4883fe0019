//! `library-req request` and `return`: one event, and what became of it.

use std::thread;
use std::time::{Duration, Instant};

use redis::ConnectionLike as _;

use super::answer::{self, Note, Waiter};
use super::failure::{DONE, Failure, Sent, UNANSWERED};
use super::interrupt::Interrupt;
use super::options::{Run, Send};
use super::show::{self, Form, print, print_outcome, say};
use super::submit::{Chunk, Fingerprint, Name, Refused};
use crate::connect::Target;
use crate::error::{Error, Remedy};
use crate::event::{AnswerWish, EventKey};
use crate::json::Object;
use crate::link::Connection;

/// Queues one event, and waits for its outcome if that is wanted.
pub fn run(run: &Run, order: &Send) -> Result<u8, Failure> {
    let deadline = Instant::now() + order.timeout;
    let target = run.target.within(order.timeout);
    // From here on Ctrl-C says what is known to be sent.
    let interrupted = |sent| format!("interrupted; {}", told(run, order, sent));
    let interrupt = Interrupt::listen(interrupted(Sent::Nothing));
    let is_leaving = || {
        if let Some(interrupt) = &interrupt {
            interrupt.set(interrupted(Sent::Unknown));
        }
    };
    let (connection, event) = queue(run, order, &target, deadline, &is_leaving)?;
    let ask = run.command("library-req outcome", &[&event.to_string()]);
    if let Some(interrupt) = &interrupt {
        interrupt.set(format!(
            "interrupted; {} {} stays queued and will be processed: {ask} tells what became of it",
            event.action, event.id
        ));
    }
    let queued = Sent::Queued(event);
    if !order.wait {
        confirm(event, run.form).map_err(|failure| {
            failure.with_fate(&format!("{queued} ({ask} tells what became of it)"))
        })?;
        return Ok(DONE);
    }
    let mut was_lost = false;
    let waiter = Waiter { target: &target, keys: &run.keys, event, deadline };
    let answer = waiter.wait(connection, &mut |note| {
        was_lost |= matches!(note, Note::Lost(_));
        if run.form == Form::Quiet {
            return;
        }
        match note {
            Note::NobodyRuns => {
                // Those of another branch may be running there.
                say(&format!(
                    "no libraryd is running on {}{}: {queued} and waits for one",
                    run.target, run.part
                ));
            }
            Note::Lost(error) => {
                say(&format!("lost Redis at {}, trying again: {error}", run.target));
            }
        }
    });
    match answer {
        Ok(Some(outcome)) => {
            print_outcome(&outcome, run.form).map_err(|failure| {
                let verdict = outcome.verdict.as_str();
                failure.with_fate(&format!(
                    "{} {} ended as {verdict} ({ask} tells it again)",
                    event.action, event.id
                ))
            })?;
            Ok(show::status(&outcome))
        }
        Ok(None) => {
            if run.form == Form::Json {
                print(&without_outcome(event, "unanswered"))
                    .map_err(|failure| failure.with_fate(&queued.to_string()))?;
            }
            // It may have come back without its last writes.
            let kept = if was_lost { ", if Redis has kept it," } else { "" };
            Err(Failure {
                message: format!(
                    "no outcome within {} s: {queued} and{kept} will be processed ({ask} tells what became \
                     of it)",
                    order.timeout.as_secs_f64()
                ),
                status: UNANSWERED,
            })
        }
        Err(error) => Err(Failure::redis(&error, &run.target, &queued)),
    }
}

/// With `--no-wait`: that the event is queued.
fn confirm(event: EventKey, form: Form) -> Result<(), Failure> {
    let text = match form {
        Form::Words => "OK\n".to_owned(),
        Form::Json => without_outcome(event, "queued"),
        Form::Quiet => return Ok(()),
    };
    print(&text).map(drop)
}

/// An event that has no outcome yet, as JSON, with a word instead.
fn without_outcome(event: EventKey, word: &str) -> String {
    let object = Object::new().text("event_id", event.id.to_string());
    object.text("action", event.action.as_str()).text("outcome", word).line()
}

/// What is known about the event when Redis fails, and what to do about it. Without a name, sending
/// again what was queued makes a second event of it.
fn told(run: &Run, order: &Send, sent: Sent) -> String {
    let user = &*order.draft.user;
    let advice = match (sent, &order.id) {
        (Sent::Unknown, Some(_)) => {
            ": the same command may be run again, under its --id it is queued once".to_owned()
        }
        (Sent::Unknown, None) => {
            let loans: &[&str] = if user.starts_with('-') { &["--", user] } else { &[user] };
            format!(
                ": before sending it again, look with {} or {} (with --id from the first time on \
                 it can be run again safely)",
                run.command("library-req loans", loans),
                run.command("library-req history", &["--user", user])
            )
        }
        _ => String::new(),
    };
    format!("{sent}{advice}")
}

/// Adds the event. Under a name (`--id`) it is safe to try again after a lost reply, and so it is
/// tried until the deadline. `is_leaving` is called before it is sent.
fn queue(
    run: &Run,
    order: &Send,
    target: &Target,
    deadline: Instant,
    is_leaving: &dyn Fn(),
) -> Result<(Connection, EventKey), Failure> {
    let name = order.id.as_ref().map(|id| Name {
        key: run.keys.submission(id),
        ttl_ms: order.remember.as_millis() as u64,
        fingerprint: Fingerprint::of(&order.draft),
    });
    let mut chunk = Chunk::new(match (&order.id, order.wait) {
        (Some(_), _) => AnswerWish::kept(order.remember),
        (None, true) => AnswerWish::Wait,
        (None, false) => AnswerWish::None,
    });
    let draft = &order.draft;
    chunk.push(draft.action, &draft.user, &draft.books);
    let command = chunk.command(&run.keys, name.as_ref(), None);
    let mut sent = Sent::Nothing;
    loop {
        let error = match target.connect(Duration::ZERO) {
            Ok(mut connection) => {
                is_leaving();
                match chunk.placed(connection.req_packed_command(&command), name.as_ref()) {
                    Ok(placed) => return Ok((connection, placed.first)),
                    Err(Refused::OtherContent(event)) => {
                        return Err(Failure::usage(format!(
                            "this --id was used for something else before, {} {}: \
                         nothing was sent",
                            event.action, event.id
                        )));
                    }
                    Err(Refused::Lost(error)) => {
                        sent = Sent::Unknown;
                        error
                    }
                    Err(Refused::Error(error)) => error,
                    // Nothing goes before it: no script of ours says that.
                    Err(Refused::OutOfTurn) => {
                        Error::Reply { doing: "queue the event", got: "OUT_OF_TURN".to_owned() }
                    }
                }
            }
            Err(error) => error,
        };
        // Without a name, only what surely did not leave could be sent again; and when Redis
        // cannot be reached at all, a person wants to know that now.
        let again = name.is_some() && sent == Sent::Unknown;
        if !again || error.remedy() != Remedy::Retry || Instant::now() >= deadline {
            return Err(Failure::redis(&error, target, &told(run, order, sent)));
        }
        thread::sleep(answer::PAUSE);
    }
}
