//! `library-req batch`: the events of a file, queued in pipelines.
//!
//! Chunks of lines are under way while the next ones are read. For each line `OK` or its fault is
//! printed, in the order of the file, a line only once Redis has said that its event is queued.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use redis::Connection;

use super::failure::{DONE, Failure, USAGE};
use super::lines::Lines;
use super::options::Run;
use super::show::{Form, print};
use super::submit::{Chunk, Refused};
use crate::error::Error;
use crate::event::AnswerWish;

/// Chunks that are sent before the reply to the first of them is read: enough that neither side
/// waits for the other, few enough that the replies fit into the link's buffers.
const MAX_UNDER_WAY: usize = 16;

/// Lines that are reported together: those of one chunk, and the faulty ones between them.
struct Part {
    chunk: Chunk,
    report: String,
    first_line: u64,
    last_line: u64,
}

impl Part {
    fn new() -> Self {
        Self {
            chunk: Chunk::new(AnswerWish::None),
            report: String::new(),
            first_line: 0,
            last_line: 0,
        }
    }

    fn lines(&self) -> String {
        format!("{}-{}", self.first_line, self.last_line)
    }
}

/// Queues the events of a file, or of stdin.
pub fn run(run: &Run, file: Option<&Path>) -> Result<u8, Failure> {
    let input: Box<dyn BufRead> = match file {
        None => Box::new(io::stdin().lock()),
        Some(path) => Box::new(BufReader::with_capacity(
            1 << 16,
            File::open(path).map_err(|error| {
                Failure::usage(format!("cannot read {}: {error}", path.display()))
            })?,
        )),
    };
    let connection = run
        .target
        .connect(Duration::ZERO)
        .map_err(|error| Failure::redis(&error, &run.target, &"nothing was sent"))?;
    Sender { run, connection, under_way: VecDeque::new(), queued: 0, bad: 0 }.all(input)
}

struct Sender<'a> {
    run: &'a Run,
    connection: Connection,
    under_way: VecDeque<Part>,
    /// Events that are known to be queued.
    queued: u64,
    /// Faulty lines.
    bad: u64,
}

impl Sender<'_> {
    fn all(mut self, input: impl BufRead) -> Result<u8, Failure> {
        let mut lines = Lines::new(input);
        let mut part = Part::new();
        loop {
            let line = match lines.next() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(error) => {
                    self.send(part)?;
                    self.finish()?;
                    return Err(Failure::usage(format!(
                        "cannot read on: {error}; {} events were queued",
                        self.queued
                    )));
                }
            };
            match line.parse() {
                Ok(None) => {}
                Ok(Some(draft)) => {
                    part.chunk.push(&draft);
                    part.report.push_str("OK\n");
                }
                Err(fault) => {
                    self.bad += 1;
                    let _ = writeln!(part.report, "line {}: {fault}", line.number);
                }
            }
            if part.first_line == 0 {
                part.first_line = line.number;
            }
            part.last_line = line.number;
            if part.chunk.is_full() {
                self.send(std::mem::replace(&mut part, Part::new()))?;
            }
        }
        self.send(part)?;
        self.finish()?;
        Ok(if self.bad == 0 { DONE } else { USAGE })
    }

    /// Sends a part's chunk; before that, takes a reply where too many are outstanding.
    fn send(&mut self, part: Part) -> Result<(), Failure> {
        if self.under_way.len() >= MAX_UNDER_WAY {
            self.receive()?;
        }
        let sent = if part.chunk.is_empty() {
            Ok(())
        } else {
            let command = part.chunk.command(&self.run.keys, None).get_packed_command();
            self.connection.send_packed_command(&command)
        };
        self.under_way.push_back(part);
        sent.map_err(|source| self.lost(&Error::Redis { doing: "queue events", source }))
    }

    fn finish(&mut self) -> Result<(), Failure> {
        while !self.under_way.is_empty() {
            self.receive()?;
        }
        Ok(())
    }

    /// Takes the reply to the oldest chunk and reports its lines.
    fn receive(&mut self) -> Result<(), Failure> {
        let Some(part) = self.under_way.front() else {
            return Ok(());
        };
        if !part.chunk.is_empty() {
            match part.chunk.placed(self.connection.recv_response()) {
                Ok(_) => self.queued += part.chunk.len() as u64,
                Err(Refused::Error(error)) => return Err(self.refused(&error)),
                Err(Refused::Lost(error)) => return Err(self.lost(&error)),
                Err(Refused::OtherContent(_)) => unreachable!("the chunk has no name"),
            }
        }
        let report = self.under_way.pop_front().map(|part| part.report).unwrap_or_default();
        if self.run.form == Form::Quiet { Ok(()) } else { print(&report) }
    }

    /// Redis refused the oldest chunk. Those sent after it may have got through all the same, so
    /// their replies are still taken: whoever sends the file again must know what not to send.
    fn refused(&mut self, error: &Error) -> Failure {
        let mut refused = Vec::new();
        refused.extend(self.under_way.pop_front());
        while let Some(part) = self.under_way.pop_front() {
            match part.chunk.is_empty() {
                true => continue,
                false => match part.chunk.placed(self.connection.recv_response()) {
                    Ok(_) => self.queued += part.chunk.len() as u64,
                    Err(Refused::Lost(error)) => {
                        self.under_way.push_front(part);
                        return self.lost(&error);
                    }
                    Err(_) => refused.push(part),
                },
            }
        }
        let lines: Vec<String> = refused.iter().map(Part::lines).collect();
        let sent = format!("{} events are queued, lines {} are not", self.queued, lines.join(", "));
        Failure::redis(error, &self.run.target, &sent)
    }

    /// The link broke: what is under way may have been queued or not.
    fn lost(&self, error: &Error) -> Failure {
        let sent = match (self.under_way.front(), self.under_way.back()) {
            (Some(first), Some(last)) => format!(
                "{} events are queued, of those of the lines {}-{} it is not known, \
                 nothing after them was sent",
                self.queued, first.first_line, last.last_line
            ),
            _ => format!("{} events are queued", self.queued),
        };
        Failure::redis(error, &self.run.target, &sent)
    }
}
