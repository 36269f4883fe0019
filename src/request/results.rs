//! The results of a batch: one for every line, as CSV or as JSON lines.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::event::EventKey;
use crate::outcome::{BOOK_LISTS, Outcome, push_escaped, push_json_string};

/// What became of one line.
#[derive(Debug)]
pub enum Fate<'a> {
    /// Its event has an outcome.
    Decided(EventKey, &'a Outcome),
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
    out: BufWriter<Box<dyn Write>>,
    format: Format,
    /// A file that gets its name only when it is whole.
    unfinished: Option<(PathBuf, PathBuf)>,
    record: String,
}

/// Opens a file for nobody else's eyes: it tells who borrows what.
pub fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

impl Results {
    /// To stdout, or nowhere with `quiet`.
    pub fn to_stdout(format: Format, quiet: bool) -> Self {
        let out: Box<dyn Write> = if quiet { Box::new(io::sink()) } else { Box::new(io::stdout()) };
        Self::new(out, format, None)
    }

    /// To a file, which takes the place of an older one only when it is whole.
    pub fn to_file(path: &Path, format: Format) -> io::Result<Self> {
        if path.metadata().is_ok_and(|meta| !meta.is_file()) {
            // A pipe or a device is written to, not replaced.
            let out = OpenOptions::new().write(true).open(path)?;
            return Ok(Self::new(Box::new(out), format, None));
        }
        let mut part = path.to_owned().into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let _ = std::fs::remove_file(&part);
        let out = Box::new(create_private(&part)?);
        Ok(Self::new(out, format, Some((part, path.to_owned()))))
    }

    fn new(out: Box<dyn Write>, format: Format, unfinished: Option<(PathBuf, PathBuf)>) -> Self {
        let mut record = String::new();
        if format == Format::Csv {
            record.push_str("line,action,event_id,outcome,cause");
            for list in BOOK_LISTS {
                record.push(',');
                record.push_str(list);
            }
            record.push('\n');
        }
        Self { out: BufWriter::with_capacity(1 << 16, out), format, unfinished, record }
    }

    /// Adds the result of a line.
    pub fn add(&mut self, line: u64, fate: &Fate<'_>) -> io::Result<()> {
        let (event, outcome, cause) = match fate {
            Fate::Decided(event, outcome) => {
                (Some(event), outcome.verdict.as_str(), outcome.cause.as_deref())
            }
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
                for list in BOOK_LISTS {
                    push_csv(record, &books(list).join(","));
                }
                record.push('\n');
            }
            Format::Json => {
                let _ = write!(record, "{{\"line\":{line}");
                for (name, value) in named {
                    if let Some(value) = value {
                        let _ = write!(record, ",\"{name}\":");
                        push_json_string(record, value);
                    }
                }
                for list in BOOK_LISTS {
                    for (n, book) in books(list).iter().enumerate() {
                        if n == 0 {
                            let _ = write!(record, ",\"{list}\":[");
                        } else {
                            record.push(',');
                        }
                        push_json_string(record, book);
                    }
                    if !books(list).is_empty() {
                        record.push(']');
                    }
                }
                record.push_str("}\n");
            }
        }
        self.out.write_all(self.record.as_bytes())?;
        self.record.clear();
        Ok(())
    }

    /// No more is to come.
    pub fn done(mut self) -> io::Result<()> {
        self.out.write_all(self.record.as_bytes())?;
        self.out.flush()?;
        if let Some((part, path)) = self.unfinished.take() {
            std::fs::rename(part, path)?;
        }
        Ok(())
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        // Half a result is none; the batch can be run again for a whole one.
        if let Some((part, _)) = &self.unfinished {
            let _ = std::fs::remove_file(part);
        }
    }
}

/// A field as RFC 4180 has it, after a comma. No id has a control character in it: where one is,
/// somebody wants to forge a line or to send codes to a terminal.
fn push_csv(record: &mut String, value: &str) {
    record.push(',');
    let mut escaped = String::new();
    let value = if value.contains(char::is_control) {
        push_escaped(&mut escaped, value);
        &escaped
    } else {
        value
    };
    if value.contains([',', '"']) {
        record.push('"');
        record.push_str(&value.replace('"', "\"\""));
        record.push('"');
    } else {
        record.push_str(value);
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
