//! What a batch consists of, checked and normalised, in a file without a name: what was checked is
//! what is sent, whatever happens to the input meanwhile, and memory does not grow with it.

use std::error::Error;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use xxhash_rust::xxh3::Xxh3;

use super::draft::Draft;
use super::submit::Fingerprint;
use crate::event::Action;

/// One line of the input that is no comment.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// An event, its books joined as its field wants them.
    Event {
        /// The line's number.
        line: u64,
        /// What it asks for.
        action: Action,
        /// The user.
        user: &'a str,
        /// The books.
        books: &'a str,
    },
    /// A line that says nothing.
    Bad {
        /// The line's number.
        line: u64,
        /// What is wrong with it.
        fault: &'a str,
    },
}

/// A spool that is being written.
pub struct Filling {
    file: BufWriter<Hashed>,
    record: Vec<u8>,
    events: u64,
    bad: u64,
}

/// What is written, and its hash. By large pieces: for each line, it would take as long as checking
/// the line.
struct Hashed {
    file: File,
    hash: Xxh3,
}

impl io::Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A spool with everything in it.
pub struct Spool {
    file: File,
    /// Of all that is in it, the numbers of the lines included.
    pub fingerprint: Fingerprint,
    /// How many events are in it.
    pub events: u64,
    /// How many bad lines are in it.
    pub bad: u64,
}

/// The directory for temporary files.
pub fn directory() -> PathBuf {
    std::env::temp_dir()
}

impl Filling {
    /// An empty one, in the directory for temporary files.
    ///
    /// # Errors
    /// No file can be made there.
    pub fn new() -> io::Result<Self> {
        let directory = directory();
        let mut tries = 0_u32;
        let file = loop {
            let path = directory.join(format!("library-req.{}.{tries}", std::process::id()));
            match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)
            {
                Ok(file) => {
                    // Gone with the process, however that ends.
                    std::fs::remove_file(&path)?;
                    break file;
                }
                // Left by a process of the same number, or laid there by somebody.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries < 100 => {
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        };
        Ok(Self {
            file: BufWriter::with_capacity(1 << 16, Hashed { file, hash: Xxh3::new() }),
            record: Vec::new(),
            events: 0,
            bad: 0,
        })
    }

    /// Adds an event. No id has a control character in it, so tabs part the fields.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn event(&mut self, line: u64, draft: &Draft) -> io::Result<()> {
        self.events += 1;
        self.add(line, &[draft.action.as_str(), &draft.user, &draft.books])
    }

    /// Adds a bad line. Faults quote what was typed with everything escaped.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn bad(&mut self, line: u64, fault: &str) -> io::Result<()> {
        self.bad += 1;
        self.add(line, &["bad", fault])
    }

    fn add(&mut self, line: u64, fields: &[&str]) -> io::Result<()> {
        self.record.clear();
        self.record.extend_from_slice(itoa::Buffer::new().format(line).as_bytes());
        for field in fields {
            self.record.push(b'\t');
            self.record.extend_from_slice(field.as_bytes());
        }
        self.record.push(b'\n');
        self.file.write_all(&self.record)
    }

    /// No more is to come.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn done(self) -> io::Result<Spool> {
        let Self { file, events, bad, .. } = self;
        let Hashed { file, hash } = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(Spool { file, fingerprint: Fingerprint(hash.digest128()), events, bad })
    }
}

impl Spool {
    /// Reads it from the beginning.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self) -> io::Result<Reader> {
        Reader::at(&self.file, 0)
    }
}

/// An error of reading a spool, among those of writing what comes of it.
#[derive(Debug)]
struct Unreadable(io::Error);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Unreadable {}

fn unreadable(error: io::Error) -> io::Error {
    io::Error::other(Unreadable(error))
}

/// Whether an error is one of reading a spool.
pub fn is_unreadable(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|cause| cause.is::<Unreadable>())
}

/// Reads a spool. There may be several, each has a place of its own.
pub struct Reader {
    file: BufReader<ReadAt>,
    record: String,
}

/// A file that is read from a place on, whoever reads elsewhere in it.
struct ReadAt {
    file: File,
    at: u64,
}

impl io::Read for ReadAt {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(bytes, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Reader {
    fn at(file: &File, at: u64) -> io::Result<Self> {
        let file = ReadAt { file: file.try_clone().map_err(unreadable)?, at };
        Ok(Self { file: BufReader::with_capacity(1 << 16, file), record: String::new() })
    }

    /// Another one that reads on from here, while this one stays.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn ahead(&self) -> io::Result<Self> {
        let ReadAt { file, at } = self.file.get_ref();
        Self::at(file, at - self.file.buffer().len() as u64)
    }

    /// The next line, `None` at the end.
    ///
    /// # Errors
    /// The file cannot be read, or somebody wrote to it.
    #[allow(clippy::should_implement_trait)] // It lends its buffer out: no iterator.
    pub fn next(&mut self) -> io::Result<Option<Entry<'_>>> {
        self.record.clear();
        if self.file.read_line(&mut self.record).map_err(unreadable)? == 0 {
            return Ok(None);
        }
        match parse(self.record.trim_end_matches('\n')) {
            None => Err(unreadable(io::Error::other("somebody has changed it"))),
            entry => Ok(entry),
        }
    }
}

fn parse(record: &str) -> Option<Entry<'_>> {
    let (line, rest) = record.split_once('\t')?;
    let line = line.parse().ok()?;
    let (word, rest) = rest.split_once('\t')?;
    let Some(action) = Action::from_word(word) else {
        return Some(Entry::Bad { line, fault: rest });
    };
    let (user, books) = rest.split_once('\t')?;
    Some(Entry::Event { line, action, user, books })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It was told as results that could not be written.
    #[test]
    fn that_it_cannot_be_read_is_known_from_what_cannot_be_written() {
        let spool = Filling::new().unwrap().done().unwrap();
        spool.file.write_all_at(b"\xff\n", 0).unwrap();
        let errors = [spool.read().unwrap().next().unwrap_err(), {
            spool.file.write_all_at(b"a\n", 0).unwrap();
            spool.read().unwrap().next().unwrap_err()
        }];
        assert!(errors.iter().all(is_unreadable), "{errors:?}");
        assert!(!is_unreadable(&io::ErrorKind::StorageFull.into()));
    }

    #[test]
    fn what_goes_in_comes_out_as_often_as_it_is_read() {
        let mut filling = Filling::new().unwrap();
        let draft =
            Draft { action: Action::Return, user: "Jorge Luis".into(), books: "a b,geb".into() };
        filling.event(3, &draft).unwrap();
        filling.bad(5, "is \"\\u{9}\"").unwrap();
        let spool = filling.done().unwrap();
        assert_eq!((spool.events, spool.bad), (1, 1));
        for _ in 0..2 {
            let mut entries = spool.read().unwrap();
            let event = Entry::Event {
                line: 3,
                action: Action::Return,
                user: "Jorge Luis",
                books: "a b,geb",
            };
            assert_eq!(entries.next().unwrap(), Some(event));
            let mut ahead = entries.ahead().unwrap();
            for entries in [&mut ahead, &mut entries] {
                let bad = Entry::Bad { line: 5, fault: "is \"\\u{9}\"" };
                assert_eq!(entries.next().unwrap(), Some(bad));
                assert_eq!(entries.next().unwrap(), None);
            }
        }
    }

    #[test]
    fn a_name_that_is_taken_is_left_to_whoever_has_it() {
        let path = directory().join(format!("library-req.{}.0", std::process::id()));
        // Another test may have it for a moment.
        let taken = (0..1_000).find_map(|_| {
            let taken = File::create_new(&path).ok();
            if taken.is_none() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            taken
        });
        taken.expect("nobody has it for long");
        let filling = Filling::new();
        std::fs::remove_file(&path).expect("it is still there");
        assert!(filling.is_ok());
    }

    #[test]
    fn what_somebody_has_changed_is_not_taken_for_its_end() {
        let mut filling = Filling::new().unwrap();
        filling.bad(1, "is empty").unwrap();
        let spool = filling.done().unwrap();
        spool.file.write_all_at(b"x\n", 0).unwrap();
        assert!(spool.read().unwrap().next().is_err());
    }
}
