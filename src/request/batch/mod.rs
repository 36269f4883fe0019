//! `library-req batch`: the events of a file, for cron.
//!
//! Three passes: all lines are checked (`check.rs`) and kept in a [spool](super::spool); the good ones are
//! sent in pipelined chunks (`courier.rs`); their outcomes are collected in the order of the lines
//! (`collect.rs`). Every chunk has a name, made from the batch's and its own number, under which Redis adds it
//! once. So a lost connection, a crash in the middle or a second run send nothing twice, and the second
//! run finds the answers of the first.
//!
//! A million lines are sent about as fast as `redis-cli --pipe` sends as many XADDs.

mod check;
mod collect;
mod courier;

use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use self::collect::Tally;
use self::courier::{Courier, IdRange};
use super::failure::{Failure, OUTPUT, UNANSWERED, USAGE};
use super::interrupt::Interrupt;
use super::options::{Batch, Run};
use super::progress::{self, Progress};
use super::results::{Fate, Format, Results};
use super::show::{Form, say};
use super::spool::{Entry, Spool};
use crate::event::EventKey;
use crate::text::counted;

/// Does what the command line asks for. Returns the exit status.
///
/// # Errors
/// A file is wrong or cannot be read or written; what Redis or the link said. What was sent is said.
pub fn run(run: &Run, order: &Batch) -> Result<u8, Failure> {
    let rejected = order.rejected.clone().or_else(|| check::beside(order.file.as_deref()?));
    check::places(order, rejected.as_deref())?;
    let spool = check::lines(order, rejected.as_deref())?;
    if spool.bad > 0 && !order.partial {
        return Err(Failure::usage(format!(
            "{}, {} good: nothing was sent (--partial sends the good ones)",
            counted(spool.bad, "bad line"),
            spool.events
        )));
    }
    // Whatever can fail without Redis fails before anything is sent.
    let format = format(run, order);
    let mut results = match &order.results {
        Some(path) => Results::to_file(path, format).map_err(|error| Failure {
            message: format!("cannot write {}: {error}; nothing was sent", path.display()),
            status: OUTPUT,
        })?,
        None => Results::to_stdout(format, run.form == Form::Quiet || order.confirm),
    };
    let id = match &order.id {
        Some(id) => id.clone(),
        None => spool.fingerprint.to_string().parse().expect("hexadecimal digits make an id"),
    };
    let _interrupt = Interrupt::listen(format!(
        "interrupted; what was sent stays queued: run the same again to go on with batch {id}"
    ));
    let progress = Progress::new(spool.events, run.form == Form::Quiet);
    let mut courier = Courier::new(run, order, id, spool.fingerprint, progress);
    courier.send_all(&spool)?;
    if spool.bad == 0
        && let Some(rejected) = &rejected
    {
        check::remove_earlier(rejected, run.form);
    }
    let (mut tally, mut written) = (Tally::default(), Ok(()));
    if order.wait {
        tally = collect::outcomes(&mut courier, &spool, &mut results)?;
    } else if !order.confirm {
        written = queued(&spool, &courier.placed, &mut results);
    } else if run.form != Form::Quiet {
        written = confirm(&spool);
    }
    match written.and_then(|()| results.done()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(courier.output(&error));
        }
        _ => {}
    }
    if run.form != Form::Quiet {
        if tally.unanswered > 0 && courier.nobody_runs() {
            say(&format!("no libraryd is running on {}{}", run.target, run.part));
        }
        say(&summary(&courier, &spool, &tally));
    }
    Ok(match &tally {
        // Unanswered lines come before bad ones: running it again can still bring outcomes, and never mends a
        // bad line.
        Tally { unanswered: 1.., .. } => UNANSWERED,
        _ if spool.bad > 0 => USAGE,
        tally => tally.worst,
    })
}

fn format(run: &Run, order: &Batch) -> Format {
    let json = order
        .results
        .as_deref()
        .and_then(Path::extension)
        .is_some_and(|end| end == "json" || end == "jsonl");
    if json || run.form == Form::Json { Format::Json } else { Format::Csv }
}

/// What came of it all, in a line.
fn summary(courier: &Courier<'_>, spool: &Spool, tally: &Tally) -> String {
    let mut text = format!("{} queued", counted(courier.queued(), "event"));
    match (courier.known, courier.queued()) {
        (0, _) => {}
        (_, 1) => text += " (by an earlier run)",
        (known, _) => text += &format!(" ({known} of them by an earlier run)"),
    }
    if courier.order.wait {
        text += &format!(": {} done, {} refused", tally.done, tally.refused);
        if tally.unanswered > 0 {
            // Of those no answer is kept, and who asks again asks in vain.
            let unless = if courier.known > 0 {
                ", unless --no-wait sent it: library-req history tells"
            } else {
                ""
            };
            text += &format!(
                ", {} unanswered so far (run the same again to ask{unless})",
                tally.unanswered
            );
        }
    }
    if spool.bad > 0 {
        text += &format!("; {} not sent", counted(spool.bad, "bad line"));
    }
    text
}

/// `OK` for every line that is queued, and the others' faults.
fn confirm(spool: &Spool) -> io::Result<()> {
    progress::clear();
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    if spool.bad == 0 {
        for _ in 0..spool.events {
            out.write_all(b"OK\n")?;
        }
        return out.flush();
    }
    let mut entries = spool.read()?;
    while let Some(entry) = entries.next()? {
        match entry {
            Entry::Event { .. } => out.write_all(b"OK\n")?,
            Entry::Bad { line, fault } => writeln!(out, "line {line}: {fault}")?,
        }
    }
    out.flush()
}

/// The results of lines of which nobody waits for the outcome.
fn queued(spool: &Spool, placed: &[IdRange], results: &mut Results) -> io::Result<()> {
    let mut ids = placed.iter().flat_map(|range| range.ids());
    let mut entries = spool.read()?;
    while let Some(entry) = entries.next()? {
        match entry {
            Entry::Event { line, action, .. } => {
                let id = ids.next().expect("each event is in a chunk");
                results.add(line, &Fate::Queued(EventKey { id, action }))?;
            }
            Entry::Bad { line, fault } => results.add(line, &Fate::Bad(fault))?,
        }
    }
    Ok(())
}
