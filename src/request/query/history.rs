//! `history`: what has happened, from the outcomes that are kept.

use std::io::{self, BufWriter, Write as _};

use super::filter::Filter;
use super::{connect, failed, recorded};
use crate::clock::{Since, rfc3339};
use crate::ids::EventId;
use crate::link::now_ms;
use crate::request::failure::{DONE, Failure, OUTPUT};
use crate::request::options::Run;
use crate::request::show::{self, say};

/// `history`.
///
/// # Errors
/// What Redis or the link said, or the output.
pub fn history(
    run: &Run,
    filter: &Filter,
    since: Option<Since>,
    last: Option<usize>,
) -> Result<u8, Failure> {
    let mut connection = connect(run)?;
    let now = now_ms(&mut connection).map_err(failed(run))?;
    let from = EventId { ms: since.map_or(0, |since| since.ms(now)), seq: 0 };
    let oldest = recorded::oldest(run, &mut connection).map_err(failed(run))?;
    let colours = show::colours();
    let mut out = BufWriter::new(io::stdout().lock());
    let mut written = Ok(());
    // Whether all that was asked for was found, however far back outcomes reach.
    let mut enough = since.is_none();
    let mut write = |id, outcome| {
        let line = filter.line(run.form, id, outcome, colours);
        written = out.write_all(line.as_bytes());
        written.is_ok()
    };
    match last {
        None => recorded::forward(run, &mut connection, from, &mut |id, outcome| {
            !filter.lets(&outcome) || write(id, outcome)
        })
        .map_err(failed(run))?,
        Some(last) => {
            let mut found = recorded::backward(run, &mut connection, from, last, |outcome| {
                filter.lets(outcome)
            })
            .map_err(failed(run))?;
            enough &= found.len() == last;
            while let Some((id, outcome)) = found.pop() {
                if !write(id, outcome) {
                    break;
                }
            }
        }
    }
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(DONE),
        Err(error) => {
            let message = format!("could not write the answer: {error}");
            return Err(Failure { message, status: OUTPUT });
        }
        Ok(()) => {}
    }
    match oldest {
        Some(oldest) => {
            if oldest > from && !enough {
                say(&format!("outcomes are kept from {} on", rfc3339(oldest.ms)));
            }
        }
        None => say("there are no outcomes yet"),
    }
    Ok(DONE)
}
