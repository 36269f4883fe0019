//! A private redis-server in a temporary directory, and all that it holds in one look.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::{Client, Connection, FromRedisValue, RedisError, Value};
use tempfile::TempDir;

/// A redis-server that ends with its test, however that ends.
pub struct Redis {
    directory: TempDir,
    // Holds the pipe whose end is the server's end.
    shell: Child,
    connection: Connection,
}

impl Redis {
    /// A server on a Unix socket that keeps nothing on disk.
    pub fn new() -> Self {
        let directory = TempDir::with_prefix("library-").unwrap();
        // The shell kills the server when its input ends: it does when the test runner is killed.
        let script = "redis-server --port 0 --unixsocket redis.sock --save '' --appendonly no \
                      >redis.log 2>&1 & read -r _; kill -9 $!";
        let shell = Command::new("sh")
            .args(["-c", script])
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let address = format!("redis+unix://{}", directory.path().join("redis.sock").display());
        let start = Instant::now();
        let connection = loop {
            match Client::open(address.as_str()).and_then(|client| client.get_connection()) {
                Ok(connection) => break connection,
                Err(error) if start.elapsed() > Duration::from_secs(20) => {
                    panic!("redis-server did not start: {error}")
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        Self { directory, shell, connection }
    }

    /// The path of its socket, as `--address` takes it.
    pub fn address(&self) -> String {
        self.directory.path().join("redis.sock").display().to_string()
    }

    /// The connection of the test.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Runs a command that may fail.
    pub fn try_ask<T: FromRedisValue>(
        &mut self,
        args: &[impl AsRef<[u8]>],
    ) -> Result<T, RedisError> {
        let mut cmd = redis::Cmd::new();
        for arg in args {
            cmd.arg(arg.as_ref());
        }
        cmd.query(&mut self.connection)
    }

    /// Runs a command that must succeed.
    pub fn ask<T: FromRedisValue>(&mut self, args: &[impl AsRef<[u8]>]) -> T {
        let shown: Vec<_> =
            args.iter().map(|arg| arg.as_ref().escape_ascii().to_string()).collect();
        self.try_ask(args).unwrap_or_else(|error| panic!("{shown:?}: {error}"))
    }

    /// Everything that it holds.
    pub fn dump(&mut self) -> Dump {
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(DUMP).arg(0);
        Dump::read(cmd.query(&mut self.connection).unwrap())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

const DUMP: &str = "
    local all = {}
    for _, key in ipairs(redis.call('KEYS', '*')) do
      local is, content = redis.call('TYPE', key).ok, nil
      if is == 'string' then
        content = redis.call('GET', key)
      elseif is == 'list' then
        content = redis.call('LRANGE', key, 0, -1)
      elseif is == 'set' then
        content = redis.call('SMEMBERS', key)
      elseif is == 'hash' then
        content = redis.call('HGETALL', key)
      elseif is == 'zset' then
        content = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
      elseif is == 'stream' then
        local groups = {}
        for _, info in ipairs(redis.call('XINFO', 'GROUPS', key)) do
          groups[#groups + 1] =
            {info[2], info[8], redis.call('XPENDING', key, info[2], '-', '+', 100000)}
        end
        content = {redis.call('XRANGE', key, '-', '+'), groups}
      end
      all[#all + 1] = {key, is, content}
    end
    return all";

/// Every key with its content. Times to live, delivery counts and idle times are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump(pub BTreeMap<String, Content>);

/// The content of a key; bytes that are no text are escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Text(String),
    List(Vec<String>),
    Set(BTreeSet<String>),
    Hash(BTreeMap<String, String>),
    Stream(Stream),
}

/// A stream with its groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// Ids and fields.
    pub entries: Vec<(String, Vec<(String, String)>)>,
    /// By name.
    pub groups: BTreeMap<String, Group>,
}

/// A consumer group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub last_delivered: String,
    /// Id -> consumer.
    pub pending: BTreeMap<String, String>,
}

fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(list) => list,
        // Lua's empty table.
        Value::Nil => Vec::new(),
        other => panic!("no list: {other:?}"),
    }
}

/// A reply's element as text; bytes that are none are escaped.
pub fn show(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => bytes.escape_ascii().to_string(),
        },
        Value::SimpleString(text) => text.clone(),
        Value::Int(number) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn pairs(value: Value) -> Vec<(String, String)> {
    list(value).chunks_exact(2).map(|pair| (show(&pair[0]), show(&pair[1]))).collect()
}

impl Dump {
    fn read(value: Value) -> Self {
        let mut all = BTreeMap::new();
        for key in list(value) {
            let [key, is, content] = <[Value; 3]>::try_from(list(key)).unwrap();
            let content = match show(&is).as_str() {
                "string" => Content::Text(show(&content)),
                "list" | "zset" => Content::List(list(content).iter().map(show).collect()),
                "set" => Content::Set(list(content).iter().map(show).collect()),
                "hash" => Content::Hash(pairs(content).into_iter().collect()),
                "stream" => Content::Stream(Stream::read(content)),
                other => panic!("a key of type {other}"),
            };
            all.insert(show(&key), content);
        }
        Self(all)
    }

    pub fn hash(&self, key: &str) -> BTreeMap<String, String> {
        match self.0.get(key) {
            Some(Content::Hash(hash)) => hash.clone(),
            None => BTreeMap::new(),
            other => panic!("{key} is no hash but {other:?}"),
        }
    }

    pub fn set(&self, key: &str) -> BTreeSet<String> {
        match self.0.get(key) {
            Some(Content::Set(set)) => set.clone(),
            None => BTreeSet::new(),
            other => panic!("{key} is no set but {other:?}"),
        }
    }

    pub fn stream(&self, key: &str) -> Stream {
        match self.0.get(key) {
            Some(Content::Stream(stream)) => stream.clone(),
            None => Stream::default(),
            other => panic!("{key} is no stream but {other:?}"),
        }
    }

    /// What differs, a line for each key.
    pub fn difference(&self, other: &Self) -> String {
        let mut lines = String::new();
        let keys: BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        for key in keys {
            let (before, after) = (self.0.get(key), other.0.get(key));
            if before != after {
                let _ = writeln!(lines, "{key}:\n  before {before:?}\n  after  {after:?}");
            }
        }
        lines
    }
}

impl Stream {
    fn read(content: Value) -> Self {
        let [entries, groups] = <[Value; 2]>::try_from(list(content)).unwrap();
        let entries = list(entries).into_iter().map(|entry| {
            let [id, fields] = <[Value; 2]>::try_from(list(entry)).unwrap();
            (show(&id), pairs(fields))
        });
        let groups = list(groups).into_iter().map(|group| {
            let [name, last, pending] = <[Value; 3]>::try_from(list(group)).unwrap();
            let pending = list(pending).into_iter().map(|one| {
                let one = list(one);
                (show(&one[0]), show(&one[1]))
            });
            let group = Group { last_delivered: show(&last), pending: pending.collect() };
            (show(&name), group)
        });
        Self { entries: entries.collect(), groups: groups.collect() }
    }

    /// The entries that a group has not done yet: pending, or not delivered.
    pub fn undone(&self, group: &str) -> Vec<(String, Vec<(String, String)>)> {
        let group = self.groups.get(group).cloned().unwrap_or_default();
        let id = |text: &str| text.parse::<library_lending::ids::EventId>().unwrap_or_default();
        let last = id(&group.last_delivered);
        let undone =
            self.entries.iter().filter(|(n, _)| id(n) > last || group.pending.contains_key(n));
        undone.cloned().collect()
    }
}
