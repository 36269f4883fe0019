//! A bare connection: commands packed by hand, replies read and mostly thrown away. What the
//! benchmark itself costs should not show, and the floor is to be as low as it can be.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::common::{DEADLINE, Redis};

/// How to reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Tcp,
    Unix,
}

/// A reply, as far as anybody looks into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Nil,
    Int(i64),
    Text(Vec<u8>),
    List(Vec<Reply>),
}

impl Reply {
    pub fn list(self) -> Vec<Reply> {
        match self {
            Self::List(list) => list,
            Self::Nil => Vec::new(),
            other => panic!("no list: {other:?}"),
        }
    }

    pub fn text(self) -> String {
        match self {
            Self::Text(bytes) => String::from_utf8(bytes).unwrap(),
            other => panic!("no text: {other:?}"),
        }
    }

    pub fn int(self) -> i64 {
        match self {
            Self::Int(n) => n,
            Self::Nil => 0,
            Self::Text(bytes) => std::str::from_utf8(&bytes).unwrap().parse().unwrap(),
            other => panic!("no number: {other:?}"),
        }
    }

    /// Names and values in turn: the value of one name.
    pub fn named(self, name: &str) -> Reply {
        let mut list = self.list().into_iter();
        while let Some(found) = list.next() {
            let value = list.next().unwrap();
            if found == Reply::Text(name.into()) {
                return value;
            }
        }
        panic!("nothing of the name {name}");
    }
}

pub struct Wire {
    reader: BufReader<Box<dyn Read + Send>>,
    writer: Box<dyn Write + Send>,
    packed: Vec<u8>,
    commands: usize,
}

impl Wire {
    pub fn connect(redis: &Redis, link: Link) -> Self {
        // Whoever waits longer waits in vain.
        let patience = Some(DEADLINE * 3);
        let (reader, writer): (Box<dyn Read + Send>, Box<dyn Write + Send>) = match link {
            Link::Tcp => {
                let stream = TcpStream::connect(("127.0.0.1", redis.port())).unwrap();
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(patience).unwrap();
                (Box::new(stream.try_clone().unwrap()), Box::new(stream))
            }
            Link::Unix => {
                let stream = UnixStream::connect(redis.address()).unwrap();
                stream.set_read_timeout(patience).unwrap();
                (Box::new(stream.try_clone().unwrap()), Box::new(stream))
            }
        };
        let reader = BufReader::with_capacity(1 << 18, reader);
        Self { reader, writer, packed: Vec::new(), commands: 0 }
    }

    /// Adds a command to the next pipeline.
    pub fn push(&mut self, args: &[&str]) {
        self.head('*', args.len());
        for arg in args {
            self.head('$', arg.len());
            self.packed.extend_from_slice(arg.as_bytes());
            self.packed.extend_from_slice(b"\r\n");
        }
        self.commands += 1;
    }

    fn head(&mut self, kind: char, n: usize) {
        write!(self.packed, "{kind}{n}\r\n").unwrap();
    }

    /// How many commands are packed.
    pub fn len(&self) -> usize {
        self.commands
    }

    /// Sends what is packed; the replies are to be read one by one.
    pub fn send(&mut self) -> usize {
        self.writer.write_all(&self.packed).unwrap();
        self.packed.clear();
        std::mem::take(&mut self.commands)
    }

    /// Sends what is packed and reads all replies; none may be an error.
    pub fn exchange(&mut self) {
        for _ in 0..self.send() {
            self.skip();
        }
    }

    /// One command and its reply.
    pub fn ask(&mut self, args: &[&str]) -> Reply {
        assert_eq!(self.commands, 0, "a pipeline is not sent yet");
        self.push(args);
        self.send();
        self.reply()
    }

    pub fn reply(&mut self) -> Reply {
        let (kind, line) = self.line();
        match kind {
            b'+' => Reply::Text(line.into()),
            b':' => Reply::Int(line.parse().unwrap()),
            b'$' if line == "-1" => Reply::Nil,
            b'*' if line == "-1" => Reply::Nil,
            b'$' => {
                let mut bytes = vec![0; line.parse::<usize>().unwrap() + 2];
                self.reader.read_exact(&mut bytes).unwrap();
                bytes.truncate(bytes.len() - 2);
                Reply::Text(bytes)
            }
            b'*' => Reply::List((0..line.parse().unwrap()).map(|_| self.reply()).collect()),
            _ => panic!("Redis said: {line}"),
        }
    }

    fn skip(&mut self) {
        let (kind, line) = self.line();
        match kind {
            b'+' | b':' => {}
            b'$' | b'*' if line == "-1" => {}
            b'$' => {
                let length = line.parse::<u64>().unwrap() + 2;
                let skipped = io::copy(&mut self.reader.by_ref().take(length), &mut io::sink());
                assert_eq!(skipped.unwrap(), length, "Redis closed the connection");
            }
            b'*' => (0..line.parse().unwrap()).for_each(|_| self.skip()),
            _ => panic!("Redis said: {line}"),
        }
    }

    fn line(&mut self) -> (u8, String) {
        let mut line = String::with_capacity(32);
        self.reader.read_line(&mut line).unwrap();
        assert!(line.ends_with("\r\n"), "Redis closed the connection");
        line.truncate(line.len() - 2);
        (line.remove(0).try_into().unwrap(), line)
    }

    /// CPU time that the server has used.
    pub fn redis_cpu(&mut self) -> Duration {
        let info = self.ask(&["INFO", "cpu"]).text();
        let seconds = |name: &str| -> f64 {
            let line = info.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_start_matches(':').parse().unwrap()
        };
        Duration::from_secs_f64(seconds("used_cpu_sys:") + seconds("used_cpu_user:"))
    }
}
