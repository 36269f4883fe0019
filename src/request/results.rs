//! The results of a batch: one for every line, as CSV or as JSON lines.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::private_file::PrivateFile;
use super::progress;
use crate::event::EventKey;
use crate::json::Object;
use crate::outcome::{BookList, Outcome};
use crate::text::escaped;

/// What became of one line.
#[derive(Debug)]
pub enum Fate<'a> {
    /// Its event has an outcome.
    Decided(EventKey, &'a Outcome),
    /// Its event is queued; nobody waits for its outcome.
    Queued(EventKey),
    /// Its event is queued; no outcome came in time.
    Unanswered(EventKey),
    /// It was no event.
    Bad(&'a str),
}

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A heading and a line each, books joined by commas.
    Csv,
    /// A JSON object each.
    Json,
}

/// Where results go.
pub struct Results {
    out: BufWriter<Sink>,
    format: Format,
    record: String,
}

/// What results are written to.
enum Sink {
    Stdout(io::Stdout),
    Nowhere,
    File(PrivateFile),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(out) => {
                progress::clear();
                out.write(bytes)
            }
            Self::Nowhere => Ok(bytes.len()),
            Self::File(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush(),
            Self::Nowhere => Ok(()),
            Self::File(file) => file.flush(),
        }
    }
}

impl Results {
    /// To stdout, or nowhere with `quiet`.
    pub fn to_stdout(format: Format, quiet: bool) -> Self {
        Self::new(if quiet { Sink::Nowhere } else { Sink::Stdout(io::stdout()) }, format)
    }

    /// To a file, which takes the place of an older one only when it is whole.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn to_file(path: &Path, format: Format) -> io::Result<Self> {
        Ok(Self::new(Sink::File(PrivateFile::create(path)?), format))
    }

    fn new(out: Sink, format: Format) -> Self {
        let mut record = String::new();
        if format == Format::Csv {
            record.push_str("line,action,event_id,outcome,cause");
            for list in BookList::ALL {
                record.push(',');
                record.push_str(list.as_str());
            }
            record.push('\n');
        }
        Self { out: BufWriter::with_capacity(1 << 16, out), format, record }
    }

    /// Adds the result of a line.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn add(&mut self, line: u64, fate: &Fate<'_>) -> io::Result<()> {
        let (event, outcome, cause) = match fate {
            Fate::Decided(event, outcome) => {
                (Some(event), outcome.verdict.as_str(), outcome.cause.as_deref())
            }
            Fate::Queued(event) => (Some(event), "queued", None),
            Fate::Unanswered(event) => (Some(event), "unanswered", None),
            Fate::Bad(fault) => (None, "bad_line", Some(*fault)),
        };
        let action = event.map(|event| event.action.as_str());
        let id = event.map(|event| event.id.to_string());
        let books = |list| match fate {
            Fate::Decided(_, outcome) => outcome.list(list),
            _ => &[],
        };
        let record = &mut self.record;
        let named = [
            ("action", action),
            ("event_id", id.as_deref()),
            ("outcome", Some(outcome)),
            ("cause", cause),
        ];
        match self.format {
            Format::Csv => {
                let _ = write!(record, "{line}");
                for (_, value) in named {
                    push_csv(record, value.unwrap_or_default());
                }
                for list in BookList::ALL {
                    push_csv(record, &books(list).join(","));
                }
                record.push('\n');
            }
            Format::Json => {
                let mut object = Object::behind(std::mem::take(record)).number("line", line);
                for (name, value) in named {
                    if let Some(value) = value {
                        object = object.text(name, value);
                    }
                }
                for list in BookList::ALL.into_iter().filter(|list| !books(*list).is_empty()) {
                    object = object.texts(list.as_str(), books(list));
                }
                *record = object.line();
            }
        }
        self.out.write_all(self.record.as_bytes())?;
        self.record.clear();
        Ok(())
    }

    /// No more is to come.
    ///
    /// # Errors
    /// They cannot be written, or the file does not get its name.
    pub fn done(mut self) -> io::Result<()> {
        self.out.write_all(self.record.as_bytes())?;
        match self.out.into_inner().map_err(io::IntoInnerError::into_error)? {
            Sink::File(file) => file.done(),
            mut other => other.flush(),
        }
    }
}

/// A field as RFC 4180 has it, after a comma. No id has a control character in it: where one is,
/// somebody wants to forge a line or to send codes to a terminal.
fn push_csv(record: &mut String, value: &str) {
    record.push(',');
    let value = match value.contains(char::is_control) {
        true => Cow::Owned(escaped(value)),
        false => Cow::Borrowed(value),
    };
    if value.contains([',', '"']) {
        record.push('"');
        record.push_str(&value.replace('"', "\"\""));
        record.push('"');
    } else {
        record.push_str(&value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Action;

    #[test]
    fn a_field_of_csv_forges_no_line_and_sends_no_code_to_a_terminal() {
        let mut record = String::new();
        push_csv(&mut record, "a\n\u{1b}[31m,\"b\"");
        assert_eq!(record, ",\"a\\u{a}\\u{1b}[31m,\"\"b\"\"\"");
    }

    #[test]
    fn a_result_reads_the_same_as_csv_and_as_json() {
        let event = EventKey { id: "17-3".parse().unwrap(), action: Action::Request };
        let outcome = Outcome::from_fields([
            ("event_id", "17-3"),
            ("action", "request"),
            ("outcome", "accepted"),
            ("book_ids", "geb,the \"b\""),
            ("not_lent", "momo"),
        ])
        .unwrap();
        let written = |format| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("results");
            let mut results = Results::to_file(&path, format).unwrap();
            results.add(1, &Fate::Decided(event, &outcome)).unwrap();
            results.add(2, &Fate::Bad("user id \"a,b\" has a comma in it")).unwrap();
            results.add(4, &Fate::Unanswered(event)).unwrap();
            assert!(!path.exists(), "it is not whole yet");
            results.done().unwrap();
            let mode = std::os::unix::fs::MetadataExt::mode(&path.metadata().unwrap());
            assert_eq!(mode & 0o777, 0o600);
            assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
            std::fs::read_to_string(&path).unwrap()
        };
        assert_eq!(
            written(Format::Csv),
            "line,action,event_id,outcome,cause,book_ids,already_yours,lent_to_another,\
             unavailable,not_lent,put_back\n\
             1,request,17-3,accepted,,\"geb,the \"\"b\"\"\",,,,momo,\n\
             2,,,bad_line,\"user id \"\"a,b\"\" has a comma in it\",,,,,,\n\
             4,request,17-3,unanswered,,,,,,,\n"
        );
        assert_eq!(
            written(Format::Json),
            "{\"line\":1,\"action\":\"request\",\"event_id\":\"17-3\",\"outcome\":\"accepted\",\
             \"book_ids\":[\"geb\",\"the \\\"b\\\"\"],\"not_lent\":[\"momo\"]}\n\
             {\"line\":2,\"outcome\":\"bad_line\",\
             \"cause\":\"user id \\\"a,b\\\" has a comma in it\"}\n\
             {\"line\":4,\"action\":\"request\",\"event_id\":\"17-3\",\"outcome\":\"unanswered\"}\n"
        );
    }
}
