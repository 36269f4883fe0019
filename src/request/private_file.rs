//! Files that tell who borrows what: for nobody else's eyes, and whole or not there at all.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// For its owner only.
const MODE: u32 = 0o600;
/// Behind the name of a file that is not whole: no user's file ends so by chance.
const UNFINISHED: &str = ".library-req-part";

/// A file that takes the place of an older one only when it is whole.
#[derive(Debug)]
pub struct PrivateFile {
    file: File,
    /// What it is called until then, and the name that it gets. None for a pipe or a device, which
    /// is written to, not replaced.
    unfinished: Option<(PathBuf, PathBuf)>,
}

impl PrivateFile {
    /// Begins it.
    ///
    /// # Errors
    /// The directory does not let us, or the name leads nowhere.
    pub fn create(path: &Path) -> io::Result<Self> {
        let Some(place) = place(path) else {
            let file = OpenOptions::new().append(true).open(path)?;
            return Ok(Self { file, unfinished: None });
        };
        if place.is_symlink() {
            // It leads into no directory, or in a circle: the error says which.
            place.metadata()?;
        }
        let part = unfinished(&place);
        // Of a run that was killed.
        let _ = std::fs::remove_file(&part);
        let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&part)?;
        Ok(Self { file, unfinished: Some((part, place)) })
    }

    /// It is whole.
    ///
    /// # Errors
    /// It cannot get its name.
    pub fn done(mut self) -> io::Result<()> {
        if let Some((part, place)) = &self.unfinished {
            // Another run may have begun anew, or a cleaner have been at work.
            if let Err(error) = part.symlink_metadata() {
                let gone = format!("{} is gone: {error}", part.display());
                return Err(io::Error::new(error.kind(), gone));
            }
            if !self.is_at(part) {
                return Err(io::Error::other("another run writes there too"));
            }
            // Or after a power cut the name may be there, and nothing behind it.
            self.file.sync_all()?;
            std::fs::rename(part, place)?;
            self.unfinished = None;
        }
        Ok(())
    }

    /// Whether it is this file that has the name: another run may have begun anew.
    fn is_at(&self, part: &Path) -> bool {
        identity(self.file.metadata()) == identity(part.symlink_metadata())
    }
}

impl Write for PrivateFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        // Half a file is none.
        if let Some((part, _)) = self.unfinished.as_ref().filter(|(part, _)| self.is_at(part)) {
            let _ = std::fs::remove_file(part);
        }
    }
}

/// Removes the file that an earlier run has left where this one has nothing to write, and tells
/// whether there was one. What no run makes stays: a link, a pipe, a file that others may read.
///
/// # Errors
/// The directory does not let us.
pub fn remove_left(path: &Path) -> io::Result<bool> {
    let left = path.symlink_metadata();
    if !left.is_ok_and(|meta| meta.is_file() && meta.mode() & 0o7777 == MODE) {
        return Ok(false);
    }
    std::fs::remove_file(path)?;
    Ok(true)
}

/// Where a file of this name is or will be, links followed. `None` if it is a pipe or a device, or
/// what the shell has opened for us (`/dev/stdout`).
pub fn place(path: &Path) -> Option<PathBuf> {
    let by_number = ["/dev", "/proc"].iter().any(|system| path.starts_with(system));
    if (by_number && path.is_symlink()) || path.metadata().is_ok_and(|meta| !meta.is_file()) {
        return None;
    }
    let there = path.canonicalize().ok();
    there
        .or_else(|| {
            let path = end_of_links(path);
            Some(directory(&path).canonicalize().ok()?.join(path.file_name()?))
        })
        .or_else(|| Some(path.to_owned()))
}

/// What a file is called that gets this place when it is whole.
pub fn unfinished(place: &Path) -> PathBuf {
    let mut name = place.to_owned().into_os_string();
    name.push(UNFINISHED);
    name.into()
}

/// Tells one file from another, whatever their names. `None` if there is none.
pub fn identity(meta: io::Result<Metadata>) -> Option<(u64, u64)> {
    meta.map(|meta| (meta.dev(), meta.ino())).ok()
}

/// The name behind links to a file that is not there yet.
fn end_of_links(path: &Path) -> PathBuf {
    // As many as Linux follows.
    const MAX_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(target) = path.read_link() else { break };
        path = directory(&path).join(target);
    }
    path
}

fn directory(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a cleaner had been at work, somebody was sent after a second run that there was not.
    #[test]
    fn a_file_that_somebody_has_removed_meanwhile_is_no_other_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results");
        let mut results = PrivateFile::create(&path).unwrap();
        results.write_all(b"whole").unwrap();
        for entry in std::fs::read_dir(&dir).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let error = results.done().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains(" is gone: "), "{error}");
    }

    #[test]
    fn of_two_runs_at_once_the_later_one_writes_the_file_and_neither_takes_the_others_for_its_own()
    {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results");
        let mut earlier = PrivateFile::create(&path).unwrap();
        earlier.write_all(b"whole").unwrap();
        let mut later = PrivateFile::create(&path).unwrap();
        later.write_all(b"ha").unwrap();
        let error = earlier.done().unwrap_err();
        assert_eq!(error.to_string(), "another run writes there too");
        assert!(!path.exists());
        drop(PrivateFile {
            file: File::open(dir.path()).unwrap(),
            unfinished: later.unfinished.clone(),
        });
        later.write_all(b"lf").unwrap();
        later.done().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "half");
    }
}
