//! The first pass of a batch: every line is read and checked before anything is sent, and the bad ones are
//! kept beside the file, ready to be corrected. Nothing is written over what is read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use crate::request::draft::Draft;
use crate::request::failure::{Failure, OUTPUT};
use crate::request::lines::{Line, Lines, Words};
use crate::request::options::Batch;
use crate::request::private_file::{PrivateFile, identity, place, remove_left, unfinished};
use crate::request::show::{Form, say};
use crate::request::spool::{self, Filling, Spool};

/// Reads and checks all lines. Bad ones are told on stderr, and their text goes to a file of its
/// own, ready to be corrected and sent.
pub(super) fn lines(order: &Batch, rejected: Option<&Path>) -> Result<Spool, Failure> {
    let name = order.file.as_deref().map_or("stdin".into(), |path| path.display().to_string());
    let unreadable =
        |error: io::Error| Failure::usage(format!("cannot read {name}: {error}; nothing was sent"));
    let (input, grown): (Box<dyn BufRead>, _) = match &order.file {
        None => (Box::new(io::stdin().lock()), None),
        Some(path) => {
            let file = File::open(path).map_err(unreadable)?;
            let meta = file.metadata().map_err(unreadable)?;
            let watched = file.try_clone().map_err(unreadable)?;
            // A file that somebody writes to while it is read might never end.
            let bytes = if meta.is_file() { meta.len() } else { u64::MAX };
            let grown =
                move || meta.is_file() && watched.metadata().is_ok_and(|now| now.len() != bytes);
            (Box::new(BufReader::with_capacity(1 << 16, file.take(bytes))), Some(grown))
        }
    };
    let unspooled = |error: io::Error| Failure {
        message: format!(
            "cannot keep the lines in a temporary file in {} (TMPDIR says where): {error}; nothing \
             was sent",
            spool::directory().display()
        ),
        status: OUTPUT,
    };
    let mut filling = Filling::new().map_err(unspooled)?;
    let mut rejects = Rejects::to(rejected);
    let refuse_binary = |text: &[u8], line: u64| {
        if text.contains(&0) {
            return Err(Failure::usage(format!(
                "{name} has a zero byte in line {line}: it is no text; nothing was sent"
            )));
        }
        Ok(())
    };
    let mut lines = Lines::new(input);
    let (mut words, mut draft) = (Words::default(), Draft::new());
    while let Some(line) = lines.next().map_err(unreadable)? {
        refuse_binary(line.text, line.number)?;
        let number = line.number;
        let is_event = line.parse(&mut words, &mut draft).and_then(|is_event| match order.only {
            Some(only) if is_event && draft.action != only => {
                Err(format!("is a {}, and not taken with --only {only}", draft.action))
            }
            _ => Ok(is_event),
        });
        match is_event {
            Ok(false) => {}
            Ok(true) => filling.event(number, &draft).map_err(unspooled)?,
            Err(fault) => {
                rejects.add(&line, &fault);
                while let Some(piece) = lines.more().map_err(unreadable)? {
                    refuse_binary(piece, number)?;
                    rejects.write(piece);
                }
                rejects.write(b"\n");
                filling.bad(number, &fault).map_err(unspooled)?;
            }
        }
    }
    if grown.is_some_and(|grown| grown()) {
        return Err(Failure::usage(format!(
            "{name} was written to while it was read: nothing was sent; run it again when it is whole"
        )));
    }
    match rejects.done() {
        // With the good ones sent, they would have to be looked for in the file.
        Err(unkept) if order.partial => {
            return Err(Failure { message: format!("{unkept}; nothing was sent"), status: OUTPUT });
        }
        // Nothing is sent in any case, and what is wrong with the file is told already.
        Err(unkept) => say(&unkept),
        Ok(()) => {}
    }
    filling.done().map_err(unspooled)
}

/// Where bad lines go.
struct Rejects<'a> {
    path: Option<&'a Path>,
    /// Begun with the first of them. What is wrong with the others is told even if it cannot be
    /// written.
    file: io::Result<Option<BufWriter<PrivateFile>>>,
    /// stderr writes each line by itself; a file full of bad lines would take for ever.
    told: BufWriter<io::Stderr>,
}

impl<'a> Rejects<'a> {
    fn to(path: Option<&'a Path>) -> Self {
        Self { path, file: Ok(None), told: BufWriter::new(io::stderr()) }
    }

    /// Tells what is wrong with a line, and begins to keep its text.
    fn add(&mut self, line: &Line<'_>, fault: &str) {
        let _ = writeln!(self.told, "library-req: line {}: {fault}", line.number);
        self.write(line.text);
    }

    fn write(&mut self, text: &[u8]) {
        let (Some(path), Ok(file)) = (self.path, &mut self.file) else {
            return;
        };
        let write = || match file {
            Some(file) => file.write_all(text),
            none => none.insert(BufWriter::new(PrivateFile::create(path)?)).write_all(text),
        };
        if let Err(error) = write() {
            self.file = Err(error);
        }
    }

    /// All bad lines are there. If they cannot be kept, the answer says so.
    fn done(mut self) -> Result<(), String> {
        let _ = self.told.flush();
        let Some(path) = self.path else {
            return Ok(());
        };
        let whole = |file: BufWriter<PrivateFile>| {
            file.into_inner().map_err(io::IntoInnerError::into_error)?.done()
        };
        let kept = self.file.and_then(|file| file.map(whole).transpose());
        // In a pipe or a device nobody looks for them.
        let is_file = place(path).is_some();
        let path = path.display();
        match kept {
            Ok(Some(())) if is_file => say(&format!("the bad lines are in {path}")),
            Ok(_) => {}
            Err(error) => {
                return Err(format!("cannot write {path}: {error}; the bad lines are not kept"));
            }
        }
        Ok(())
    }
}

/// Refuses to write over what is read, or to write two things to one place. A file is written under
/// another name until it is whole: what has that name already would be gone.
pub(super) fn places(order: &Batch, rejected: Option<&Path>) -> Result<(), Failure> {
    let read = identity_of_input(order.file.as_deref());
    let is_read = |path: &Path| read.is_some() && identity(path.metadata()) == read;
    let is_lost = |place: &Option<PathBuf>| {
        place.as_ref().is_some_and(|place| is_read(place) || is_read(&unfinished(place)))
    };
    let [results, rejected] = [order.results.as_deref(), rejected].map(|path| path.and_then(place));
    let collide = |one: &Path, other: &Path| {
        one == other || unfinished(one) == *other || unfinished(other) == *one
    };
    let fault = if is_lost(&results) {
        "--results would write over the batch itself"
    } else if is_lost(&rejected) {
        "--rejected would write over the batch itself"
    } else if results.zip(rejected).is_some_and(|(one, other)| collide(&one, &other)) {
        "--results and --rejected name the same file"
    } else {
        return Ok(());
    };
    Err(Failure::usage(format!("{fault}: nothing was sent")))
}

/// Which file the batch is read from. The shell may have opened it, as stdin, and has told us no name.
fn identity_of_input(file: Option<&Path>) -> Option<(u64, u64)> {
    match file {
        Some(path) => identity(path.metadata()),
        None => {
            let stdin = io::stdin().as_fd().try_clone_to_owned().ok()?;
            identity(File::from(stdin).metadata())
        }
    }
}

/// Where the bad lines of a file go unless told otherwise. A pipe, and what the shell has opened
/// for us, are like stdin: nobody looks for a file beside them.
pub(super) fn beside(file: &Path) -> Option<PathBuf> {
    place(file)?;
    let mut name = file.to_owned().into_os_string();
    name.push(".rejected");
    Some(name.into())
}

/// Removes the bad lines of an earlier run: they would be taken for those of this one.
pub(super) fn remove_earlier(rejected: &Path, form: Form) {
    let path = rejected.display();
    match remove_left(rejected) {
        Ok(true) if form != Form::Quiet => {
            say(&format!("no bad lines: removed {path}, those of an earlier run"));
        }
        Ok(_) => {}
        Err(error) => {
            say(&format!("cannot remove {path}, the bad lines of an earlier run: {error}"));
        }
    }
}
